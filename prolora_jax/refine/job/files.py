"""Adapter files refined to files, with their reports: copied first, then taught."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import msgspec

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.fitting import Fitted
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, BaseModelError, ProloraError, Refusal, UsageError
from prolora_jax.io.base_models.checkpoint import BaseModel, located
from prolora_jax.io.base_models.lm_files import read_lm_config
from prolora_jax.io.outputs.reports import read_report, report_path
from prolora_jax.io.outputs.work_folder import WorkFolder
from prolora_jax.migration.files import Writing, as_written, read_fitted, write_migrated
from prolora_jax.migration.many import energy_that_moves
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import plan_fitted, run_plan, with_provenance
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline, require_drawable
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Skip
from prolora_jax.plans.refined import Refined
from prolora_jax.plans.report import IN_FLOAT32, REFINED, MigrationReport, ModuleReport
from prolora_jax.refine.fitting import require_optax
from prolora_jax.refine.job.bases import (
    DrawingBases,
    beside_unets,
    require_nets,
    require_one_latent_space,
)
from prolora_jax.refine.job.deciding import NO_NETS, UNPROVEN, decided, untaught
from prolora_jax.refine.job.in_turn import in_turn
from prolora_jax.refine.job.prompts import own_words
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.job.refined import PairRefinement, ToRefine
from prolora_jax.refine.job.student import TAUGHT
from prolora_jax.refine.lm.opening import is_language_model, require_kernels, text_pair
from prolora_jax.refine.lm.pair import TextPairRefinement
from prolora_jax.refine.lm.recipe import LmRecipe

AT_ONCE = 8
"""Adapters for which both base models are loaded once; their rows lie on the disk meanwhile."""


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
        decides: `--method auto`: what cannot be taught is copied, and each report says what was
            chosen, and why.
    """

    recipe: RefineRecipe = RefineRecipe()
    writing: Writing = Writing()
    options: MigrationOptions = MigrationOptions(method="copy")
    words: tuple[str, ...] = ()
    pixels: int | None = None
    texts: LmRecipe = LmRecipe()
    only_drawn: tuple[str, ...] = ()
    only_written: tuple[str, ...] = ()
    decides: bool = False

    def __post_init__(self):
        if not all(word.strip() for word in self.words):
            raise UsageError(
                "refine: found a trigger without letters; expected a word that the adapter was "
                "trained with; give --trigger one, or leave it away",
                code=Refusal.BAD_OPTION,
            )


class RefinedFile(NamedTuple):
    """What came of one file.

    Attributes:
        path: the input.
        output: where its output is, or would be.
        report: what was done; None where it was refused.
        refusal: why it was, with its code.
        energy: squared norm of the input's update, and of the modules that move.
    """

    path: Path
    output: Path
    report: MigrationReport | None
    refusal: ProloraError | None = None
    energy: tuple[float, float] = (0.0, 0.0)


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
        self.pair, self.request, self.work = pair, request, work
        self._progress = progress
        self._writes = is_language_model(pair.target)
        self._untaught: ProloraError | None = None
        self._models: TextPairRefinement | PairRefinement | None = None
        try:
            self._models = self._opened(bases)
        except (BaseModelError, UsageError) as reason:
            if not request.decides or reason.code not in NO_NETS:
                raise
            self._untaught = reason
        if self._models is not None and request.writing.format == "same":
            # A student has factors, whatever the input has.
            self.request = replace(request, writing=request.writing._replace(format="lora"))

    def _opened(self, bases: DrawingBases) -> TextPairRefinement | PairRefinement:
        """What teaches, after all is refused that can be told before any work."""
        require_optax()
        parts = bases.source_parts or bases.target_parts
        _refuse_idle(self.request, parts=parts is not None, writes=self._writes)
        if not self._writes:
            return self._drawers(bases)
        models = self._writers(bases)
        if self.request.decides:
            raise UsageError(UNPROVEN, code=Refusal.UNSUPPORTED_CONFIG)
        return models

    @property
    def stamp(self) -> str:
        """A digest of all that outputs depend on, beside the inputs and the copies' options."""
        taught = None if self._models is None else self._models.stamp
        asked = taught, self.request.words, self.request.decides
        return sha256(msgspec.json.encode(asked)).hexdigest()

    def _writers(self, bases: DrawingBases) -> TextPairRefinement:
        models, recipe = (self.pair.source, self.pair.target), self.request.texts
        recipe.fit_for(from_zero=False)  # a batch that cannot be cut is refused before texts
        configs = (read_lm_config(located(model.location))[0] for model in models)
        stamp = recipe.stamp(*map(_identity, models), *configs, bases.dtype)
        return text_pair(models, recipe, self.work, stamp, bases.dtype, self._progress)

    def _drawers(self, bases: DrawingBases) -> PairRefinement:
        require_nets(self.pair)
        per_latent = require_one_latent_space(bases)
        recipe = self.request.recipe.at_pixels(self.request.pixels, per_latent)
        require_drawable(bases.source, parts=bases.source_parts)
        require_drawable(bases.target, parts=bases.target_parts)
        load = partial(load_pipeline, dtype=jnp.dtype(bases.dtype))
        identities = map(_identity, (self.pair.source, self.pair.target))
        return PairRefinement(
            partial(load, bases.source, parts=bases.source_parts),
            partial(load, bases.target, parts=bases.target_parts),
            recipe,
            self.work,
            recipe.stamp(*identities, *beside_unets(bases), bases.dtype),
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
                except (AdapterRefused, UsageError) as refusal:
                    yield RefinedFile(path, output, None, refusal)
            for one in ready:
                if one.untaught is not None:
                    report = self._written(one, one.todo.copied, None)
                    yield RefinedFile(one.path, one.output, report, None, one.energy)
            yield from self._taught([one for one in ready if one.untaught is None])

    def _taught(self, ready: Sequence["_Ready"]) -> Iterator[RefinedFile]:
        """Those of a batch that a student is made for."""
        for one, done in in_turn(self._made, ready):
            if isinstance(done, AdapterRefused):
                yield RefinedFile(one.path, one.output, None, done)
            else:
                yield RefinedFile(one.path, one.output, done, None, one.energy)

    def _made(self, ready: Sequence["_Ready"]) -> Iterator[MigrationReport]:
        """Each taught and written, with its report; raises at the first that is refused."""
        if self._models is None:
            return
        found = self._models.refine([one.todo for one in ready])
        for one, done in zip(ready, found, strict=True):
            report = self._written(one, done.adapter, done.record)
            yield report
            self._models.folder(one.todo).remove()

    def is_made(self, path: Path, record: Refined | None) -> bool:
        """Whether an output is what would be made again: of this file, this pair, this recipe.

        Args:
            path: the input.
            record: of the output that is there.
        """
        if record is None or self._models is None:
            return False
        try:
            given = self._read(path).adapter
        except (AdapterRefused, UsageError):
            return False
        return self._models.stamp_of(given, self._words(given)) == record.stamp

    def is_same(self, path: Path, report: MigrationReport) -> bool:
        """Whether a file is still the one that an output was made of, by its content.

        Args:
            path: the input.
            report: of the output that is there.
        """
        if report.refined is not None:
            return self.is_made(path, report.refined)
        try:
            return self._read(path).adapter.fingerprint == report.input.fingerprint
        except (AdapterRefused, UsageError):
            return False

    def close(self) -> None:
        """All is done: nothing that was kept on the way is needed any more."""
        WorkFolder(self.work, "").remove()

    def _ready(self, path: Path, output: Path) -> "_Ready":
        """One file copied, which a student is to start from."""
        fitted = self._read(path)
        plan = plan_fitted(fitted, self.pair, self.request.options, self._progress)
        given, spec = fitted.adapter, self.pair.target.spec
        unlike = {
            skip.source_path
            for skip in plan.skipped
            if skip.reason is Skip.SHAPE_MISMATCH and skip.source_path in spec.modules
        }
        ranks = {m.path: m.rank for m in given.modules if m.path in unlike}
        from_zero = {path: rank for path, rank in ranks.items() if path.startswith(TAUGHT)}
        may_be_empty = self._models is not None and bool(from_zero)  # what can be learned may be
        copied, report = run_plan(given, self.pair, plan, may_be_empty=may_be_empty)
        words = self._words(given)
        own = sha256(msgspec.json.encode((given.fingerprint, words))).hexdigest()
        todo = ToRefine(given, copied, from_zero, words, f"adapter-{own[:16]}")
        ready = _Ready(path, output, todo, report, energy_that_moves(given, plan))
        try:
            self._require_teachable(todo)
        except ProloraError as reason:
            if not self.request.decides or not plan.steps:
                raise
            return ready._replace(untaught=untaught(reason))
        return ready

    def _require_teachable(self, todo: ToRefine) -> None:
        """Refuse what no student can be taught."""
        if self._untaught is not None:
            raise self._untaught
        if not todo.from_zero and not any(m.path.startswith(TAUGHT) for m in todo.copied.modules):
            raise AdapterRefused(
                f"{todo.given.origin}: has no module in what {self.pair.target.spec.name} draws or "
                "writes with; expected at least one, which a student could learn; use `prolora "
                "migrate`",
                code=Refusal.NO_MATCHING_MODULE,
            )
        if self._writes:
            require_kernels(todo, self.pair.source)

    def _read(self, path: Path) -> Fitted:
        options, writing = self.request.options, self.request.writing
        return read_fitted(path, self.pair.source, options, writing, folder=path.is_dir())

    def _words(self, given: Adapter) -> tuple[str, ...]:
        if self._writes:
            return ()
        return own_words(given.metadata, self.request.words, self.request.recipe.prompts)

    def _written(self, one: "_Ready", adapter: Adapter, record: Refined | None) -> MigrationReport:
        """The output and its report, on the disk."""
        report = one.report if record is None else refined_report(one.report, adapter, record)
        if self.request.decides:
            why = one.untaught if record is None else decided(record)
            report = replace(report, method="auto", decided=why)
        target, writing = self.pair.target.spec, self.request.writing
        adapter = with_provenance(adapter, report, target)
        report = as_written(adapter, report, target, writing)
        write_migrated(adapter, report, one.output, target, writing)
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
    """A file that was copied, and is to be refined; `untaught`: why it stays a copy, if it does."""

    path: Path
    output: Path
    todo: ToRefine
    report: MigrationReport
    energy: tuple[float, float]
    untaught: str | None = None


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
