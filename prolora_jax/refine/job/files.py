"""Adapter files refined to files, with their reports: copied first, then taught."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import msgspec

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.fitting import Fitted
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, BaseModelError, ProloraError, Refusal, UsageError
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.io.base_models.pipeline_files import pipeline_files
from prolora_jax.io.outputs.reports import read_report, report_path
from prolora_jax.io.outputs.work_folder import WorkFolder
from prolora_jax.migration.files import Writing, read_fitted, write_migrated
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import plan_fitted, run_plan, with_provenance
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Skip
from prolora_jax.plans.refined import Refined
from prolora_jax.plans.report import IN_FLOAT32, REFINED, MigrationReport, ModuleReport
from prolora_jax.refine.fitting import require_optax
from prolora_jax.refine.job.prompts import own_words
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.job.refined import PairRefinement, RefinedAdapter, ToRefine
from prolora_jax.refine.job.student import TAUGHT
from prolora_jax.refine.lm.opening import is_language_model, require_kernels, text_pair
from prolora_jax.refine.lm.pair import TextPairRefinement
from prolora_jax.refine.lm.recipe import LmRecipe

AT_ONCE = 8
"""Adapters for which both base models are loaded once; their rows lie on the disk meanwhile."""


@dataclass(frozen=True)
class DrawingBases:
    """Where two base models draw from.

    Attributes:
        source: a diffusers pipeline's folder, or a UNet in any form.
        target: likewise.
        source_parts: pipeline from which everything but the source's UNet is taken.
        target_parts: likewise.
        dtype: what both nets compute in; the student's factors are float32.
    """

    source: Path
    target: Path
    source_parts: Path | None = None
    target_parts: Path | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class RefineRequest:
    """How files are refined.

    Attributes:
        recipe: of the refinement.
        writing: the output's format, and what may be read and replaced.
        options: of the copy that the student starts from.
        words: that adapters were trained with, instead of those in their headers.
        pixels: height and width of samples; None for what the target was trained on.
        texts: of the refinement, where both base models are language models.
        only_drawn: options that were given and say nothing to models that write.
        only_written: options that were given and say nothing to models that draw.
    """

    recipe: RefineRecipe = RefineRecipe()
    writing: Writing = Writing()
    options: MigrationOptions = MigrationOptions(method="copy")
    words: tuple[str, ...] = ()
    pixels: int | None = None
    texts: LmRecipe = LmRecipe()
    only_drawn: tuple[str, ...] = ()
    only_written: tuple[str, ...] = ()


class RefinedFile(NamedTuple):
    """What came of one file.

    Attributes:
        path: the input.
        output: where its output is, or would be.
        report: what was done; None where it was refused.
        refusal: why it was, with its code.
    """

    path: Path
    output: Path
    report: MigrationReport | None
    refusal: AdapterRefused | None = None


def latent_space(place: Path, parts: Path | None = None) -> dict[str, Any]:
    """What tells latent spaces apart, from the configuration of a pipeline's VAE.

    Args:
        place: of the base model.
        parts: of its other components, if not beside it.

    Raises:
        UsageError: there is nothing.
        BaseModelError: it is no whole pipeline.
    """
    config = pipeline_files(place, parts).config("vae")
    known = {"latent_channels": 4, "scaling_factor": 0.18215, "shift_factor": None}
    blocks = config.get("block_out_channels")
    found = {name: config.get(name, usual) for name, usual in known.items()}
    return found | {"pixels_per_latent": 2 ** (len(blocks) - 1) if isinstance(blocks, list) else 8}


def require_one_latent_space(bases: DrawingBases) -> int:
    """Refuse base models whose nets speak of different latents.

    Args:
        bases: source and target.

    Returns:
        Pixels of a latent, height and width.

    Raises:
        BaseModelError: they differ.
    """
    source = latent_space(bases.source, bases.source_parts)
    target = latent_space(bases.target, bases.target_parts)
    for name, wanted in target.items():
        if source[name] != wanted:
            raise BaseModelError(
                f"{bases.source}: its VAE has {name} {source[name]}; expected {wanted}, which "
                f"{bases.target} has: pictures of one are none of the other's, so nothing can be "
                "learned from them; use `prolora migrate`",
                code=Refusal.WRONG_BASE,
            )
    return target["pixels_per_latent"]


class FileRefinement:
    """The files of one pair: what they share is made once.

    Attributes:
        pair: source and target, by weights.
        request: what is asked.
        work: folder in which all that was done is kept.
    """

    def __init__(
        self,
        bases: DrawingBases,
        pair: BasePair,
        request: RefineRequest,
        work: Path,
        progress: Progress = lambda stage, done, total: None,
    ):
        require_optax()
        if request.writing.format == "same":  # a student has factors, whatever the input has
            request = replace(request, writing=request.writing._replace(format="lora"))
        self.pair, self.request, self.work = pair, request, work
        self._progress = progress
        self._writes = is_language_model(pair.target)
        parts = bases.source_parts or bases.target_parts
        _refuse_idle(request, parts=parts is not None, writes=self._writes)
        make = self._writers if self._writes else self._drawers
        self._models: TextPairRefinement | PairRefinement = make(bases)

    def _writers(self, bases: DrawingBases) -> TextPairRefinement:
        models, recipe = (self.pair.source, self.pair.target), self.request.texts
        recipe.fit_for(from_zero=False)  # a batch that cannot be cut is refused before texts
        stamp = recipe.stamp(*map(_identity, models), bases.dtype)
        return text_pair(models, recipe, self.work, stamp, bases.dtype, self._progress)

    def _drawers(self, bases: DrawingBases) -> PairRefinement:
        per_latent, recipe = require_one_latent_space(bases), self.request.recipe
        if self.request.pixels is not None:
            side = max(1, self.request.pixels // per_latent)
            recipe = replace(recipe, size=(side, side))
        load = partial(load_pipeline, dtype=jnp.dtype(bases.dtype))
        return PairRefinement(
            partial(load, bases.source, parts=bases.source_parts),
            partial(load, bases.target, parts=bases.target_parts),
            recipe,
            self.work,
            recipe.stamp(*map(_identity, (self.pair.source, self.pair.target)), bases.dtype),
            self._progress,
        )

    def refine(self, files: Sequence[tuple[Path, Path]]) -> Iterator[RefinedFile]:
        """Refine some files, some at a time.

        Args:
            files: inputs and outputs.

        Yields:
            What came of each, those that are refused before the others of their batch.

        Raises:
            ProloraError: a base model cannot be used, or an output not written.
        """
        for begin in range(0, len(files), AT_ONCE):
            ready: list[_Ready] = []
            for path, output in files[begin : begin + AT_ONCE]:
                try:
                    ready.append(self._ready(path, output))
                except AdapterRefused as refusal:
                    yield RefinedFile(path, output, None, refusal)
            found = self._models.refine([one.todo for one in ready])
            for one, done in zip(ready, found, strict=True):
                yield RefinedFile(one.path, one.output, self._written(one, done))
                self._models.folder(one.todo).remove()

    def is_made(self, path: Path, record: Refined | None) -> bool:
        """Whether an output is what would be made again: of this file, this pair, this recipe.

        Args:
            path: the input.
            record: of the output that is there.
        """
        if record is None:
            return False
        try:
            given = self._read(path).adapter
        except AdapterRefused:
            return False
        return self._models.stamp_of(given, self._words(given)) == record.stamp

    def close(self) -> None:
        """All is done: nothing that was kept on the way is needed any more."""
        WorkFolder(self.work, "").remove()

    def _ready(self, path: Path, output: Path) -> "_Ready":
        """One file copied, which a student is to start from."""
        fitted = self._read(path)
        plan = plan_fitted(fitted, self.pair, self.request.options, self._progress)
        copied, report = run_plan(fitted.adapter, self.pair, plan, may_be_empty=True)
        given, spec = fitted.adapter, self.pair.target.spec
        unlike = {
            skip.source_path
            for skip in report.skipped
            if skip.reason is Skip.SHAPE_MISMATCH and skip.source_path in spec.modules
        }
        ranks = {m.path: m.rank for m in given.modules if m.path in unlike}
        from_zero = {path: rank for path, rank in ranks.items() if path.startswith(TAUGHT)}
        if not from_zero and not any(m.path.startswith(TAUGHT) for m in copied.modules):
            raise AdapterRefused(
                f"{given.origin}: has no module in what {spec.name} draws or writes with; expected "
                "at least one, which a student could learn; use `prolora migrate`",
                code=Refusal.NO_MATCHING_MODULE,
            )
        name = f"adapter-{given.fingerprint[:16]}"
        todo = ToRefine(given, copied, from_zero, self._words(given), name)
        if self._writes:
            require_kernels(todo, self.pair.source)
        return _Ready(path, output, todo, report)

    def _read(self, path: Path) -> Fitted:
        return read_fitted(path, self.pair.source, self.request.options, self.request.writing)

    def _words(self, given: Adapter) -> tuple[str, ...]:
        if self._writes:
            return ()
        return own_words(given.metadata, self.request.words, self.request.recipe.prompts)

    def _written(self, one: "_Ready", done: RefinedAdapter) -> MigrationReport:
        """The output and its report, on the disk."""
        report = refined_report(one.report, done.adapter, done.record)
        adapter = with_provenance(done.adapter, report, self.pair.target.spec)
        write_migrated(adapter, report, one.output, self.pair.target.spec, self.request.writing)
        return report


def _refuse_idle(request: RefineRequest, *, parts: bool, writes: bool) -> None:
    """Refuse options that the base models of a pair have no use for."""
    idle = request.only_drawn if writes else request.only_written
    if writes and parts:
        idle = (*idle, "source-parts or --target-parts")
    if idle:
        kind, doing = ("language models", "draw") if writes else ("models that draw", "write")
        raise UsageError(
            f"--{idle[0].replace('_', '-')}: found it for {kind}; expected options that count for "
            f"them: they do not {doing}; leave it away",
            code=Refusal.BAD_OPTION,
        )


class _Ready(NamedTuple):
    """A file that was copied, and is to be refined."""

    path: Path
    output: Path
    todo: ToRefine
    report: MigrationReport


def refined_report(report: MigrationReport, adapter: Adapter, record: Refined) -> MigrationReport:
    """The report of a copy, with what the student has made of it.

    Args:
        report: of the copy.
        adapter: as it will be written.
        record: of the refinement.
    """
    if record.way == "copy":
        return replace(report, refined=record)
    after = {module.path: module for module in adapter.modules}

    def taught(module: ModuleReport) -> ModuleReport:
        if not module.path.startswith(TAUGHT):
            return module
        made, flags = after[module.path], [f for f in module.flags if f != IN_FLOAT32]
        return replace(module, rank_out=made.rank, norm_out=made.norm, flags=(*flags, REFINED))

    return replace(report, modules=tuple(map(taught, report.modules)), refined=record)


def record_of(output: Path) -> Refined | None:
    """What an output's report says of its refinement, if both are there.

    Args:
        output: what may have been written before.
    """
    if not output.exists() or not report_path(output).exists():
        return None
    try:
        return msgspec.convert(read_report(output), MigrationReport).refined
    except ProloraError:
        return None


def _identity(model: BaseModel) -> str:
    """What identifies a base model's weights, wherever it lies."""
    return msgspec.json.encode(model.fingerprints(sorted(model.spec.modules))).decode()
