"""The arms of an adapter: what each draws with, read, moved and fitted when it is asked for."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.fitting import fit
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.drawer import (
    GUIDANCE_LCM,
    GUIDANCE_XL,
    NONE,
    Drawer,
    require_heard,
    usual_guidance,
    usual_steps,
)
from prolora_jax.evaluation.judging.request import OPTIONS, REFINE, TRAINED, DrawnSet, Subject
from prolora_jax.evaluation.judging.taught import depends_on
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import located
from prolora_jax.io.base_models.pipeline_files import pipeline_files
from prolora_jax.io.outputs.catalog_files import file_hash
from prolora_jax.migration.fitted import fit_to
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import plan_fitted, run_plan
from prolora_jax.nets.adapters.tree import matrices, spec_of
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline, load_sampler
from prolora_jax.nets.sampling.samplers import Sampler, Spacing
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.vae.tiles import VaeTile
from prolora_jax.plans.options import MigrationOptions

_COMPONENTS = {"scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet"}
_COMPONENTS |= {"vae"}
_ENDINGS = {".safetensors", ".msgpack", ".bin", ".ckpt", ".pt", ".pth", ".json", ".txt"}
METHODS: tuple[str, ...] = get_args(get_type_hints(MigrationOptions)["method"])
ARMS = (NONE, *METHODS, REFINE, TRAINED)
"""`none`: the target alone; arms of a migration; `refine` and `trained`: adapters of the target."""


@dataclass(frozen=True)
class HowToDraw:
    """What all arms share; None is for what is usual.

    Attributes:
        target: the base model that draws, as `load_pipeline` takes it.
        parts: pipeline from which everything but the UNet is taken.
        sampler: takes the steps.
        spacing: where the steps are.
        dtype: what is computed in.
        negative: what not to draw.
        steps: of the sampler.
        guidance: how much the prompt counts.
        size: height and width in pixels.
        at_once: pictures drawn together on each device.
        vae_tile: whether pictures are decoded in tiles.
    """

    target: str
    parts: str | None = None
    sampler: Sampler = "auto"
    spacing: Spacing | None = None
    dtype: str = "float32"
    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    at_once: int = 4
    vae_tile: VaeTile = "auto"

    def check(self) -> None:
        """Refuse what would do nothing, before anything is loaded.

        Raises:
            UsageError: the sampler does not ask for a spacing, or nothing for the negative prompt.
            BaseModelError: the target has no sampler that is supported.
        """
        made = load_sampler(
            self.target, parts=self.parts, sampler=self.sampler, spacing=self.spacing
        )
        least = GUIDANCE_LCM if made.name == "lcm" else GUIDANCE_XL
        require_heard(self.negative, least if self.guidance is None else self.guidance)

    def loaded(self) -> tuple[Pipeline, Params]:
        """The target, ready to draw.

        Raises:
            BaseModelError: it cannot be used.
        """
        like: dict[str, Any] = {"sampler": self.sampler, "spacing": self.spacing}
        return load_pipeline(self.target, parts=self.parts, dtype=self.dtype, **like)

    def settings(self, pipeline: Pipeline) -> dict[str, Any]:
        """The arguments of `generate`."""
        steps, side = self.steps, self.size or pipeline.pixels
        guidance = usual_guidance(pipeline) if self.guidance is None else self.guidance
        return {
            "negative": self.negative,
            "weighting": "off",  # encoders are told the prompt as it stands, and so is the net
            "steps": usual_steps(pipeline) if steps is None else steps,
            "guidance": guidance,
            "size": (side, side),
            "at_once": self.at_once,
            "vae_tile": self.vae_tile,
        }

    def told(self) -> dict[str, Any]:
        """What a picture depends on, with which files the base model has, for its key."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del found["at_once"]
        places = pipeline_files(self.target, self.parts)
        return found | {"files": [_files(place) for place in (places.folder, places.unet)]}


def _files(place: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a base model's files; what else is in its folder does not count."""
    paths = [place]
    if place.is_dir():
        folders = [place, *(p for p in sorted(place.iterdir()) if p.name in _COMPONENTS)]
        paths = [p for folder in folders for p in sorted(folder.iterdir()) if p.is_file()]
    found = [(p, p.stat()) for p in paths if p == place or p.suffix in _ENDINGS]
    return [(p.name, stat.st_size, stat.st_mtime_ns) for p, stat in found]


def _hash(file: Path) -> str:
    try:
        return file_hash(file)
    except OSError as failure:
        raise UsageError(
            f"{file}: cannot be read ({failure.strerror or failure}); expected an adapter; name "
            f"another",
            code=Refusal.MISSING_FILE,
        ) from None


def drawn_set(
    subject: Subject,
    arms: tuple[str, ...],
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    how: HowToDraw,
    source: str,
    options: MigrationOptions,
    out: Path,
    source_parts: str | None = None,
) -> DrawnSet:
    """Which pictures an adapter's arms have, before anything is loaded.

    Args:
        subject: the adapter.
        arms: of `ARMS`.
        prompts: what to draw.
        seeds: of the noise.
        how: all arms share.
        source: base model that the adapter was trained on.
        options: of the migrations; the method is each arm's own.
        out: folder of all pictures.
        source_parts: where what is refined here has the source's other components from.

    Raises:
        UsageError: an arm is not known, or its file is not there or cannot be read.
        BaseModelError: a base model is not there.
    """
    for arm in arms:
        if arm not in ARMS:
            raise UsageError(
                f"--arms {arm}: expected {', '.join(ARMS)}, with commas between",
                code=Refusal.BAD_OPTION,
            )
        if arm in {TRAINED, REFINE} and arm not in subject.own:
            raise UsageError(
                f"--arms {arm}: found no adapter of the target for {subject.file}; expected "
                f"{OPTIONS[arm]} FILE, or leave the arm out",
                code=Refusal.BAD_OPTION,
            )
    moved: dict[str, Any] = {"file": _hash(subject.file), "source": _files(located(source))}
    moved["scale"] = subject.scale
    given: dict[str, Any] = {}
    for arm in arms:
        if arm in METHODS:
            given[arm] = moved | {"options": asdict(replace(options, method=arm))}
        elif arm == REFINE and subject.refines:
            given[arm] = moved | depends_on(options, source_parts)
        elif arm != NONE:
            read = {"alpha_zero": options.alpha_zero, "factor_rank": options.factor_rank}
            given[arm] = {"file": _hash(subject.own[arm]), "scale": subject.scale} | read
    return DrawnSet(out / subject.name, arms, prompts, seeds, how.told(), given)


def drawer_for(
    subject: Subject,
    arms: tuple[str, ...],
    pair: BasePair,
    base: tuple[Pipeline, Params],
    how: HowToDraw,
    options: MigrationOptions,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Drawer, Mapping[str, dict[str, int]]]:
    """What draws an adapter's arms, and what became of its modules in each that was moved.

    Args:
        subject: the adapter.
        arms: to be drawn.
        pair: of source and target.
        base: the target's pipeline and parameters.
        how: all arms share.
        options: of the migrations.
        progress: called with (what, done, total).

    Raises:
        AdapterRefused: an adapter cannot be used.
    """
    pipeline, params = base
    here = replace(options, assume_base=pair.target.spec.family)
    adapters: dict[str, list[Adapter]] = {}
    counts: dict[str, dict[str, int]] = {}
    moving = [arm for arm in arms if arm in METHODS]
    if moving:
        fitted = fit_to(pair.source, _read(subject.file, options), options)
        for arm in moving:
            plan = plan_fitted(fitted, pair, replace(options, method=arm), progress)
            moved, report = run_plan(fitted.adapter, pair, plan, progress)
            adapters[arm], counts[arm] = [_factors(moved, params, here)], dict(report.counts)
    for arm in (arm for arm in arms if arm in {TRAINED, REFINE}):
        own = _read(subject.own[arm], options)
        adapters[arm] = [_factors(own, params, replace(options, assume_base=None))]
    scales = (subject.scale,) if adapters else ()
    return Drawer(pipeline, params, adapters, scales, how.settings(pipeline)), counts


def _read(file: Path, options: MigrationOptions) -> Adapter:
    return load_adapter(file, alpha_zero=options.alpha_zero, structured=True)


def _factors(adapter: Adapter, params: Params, options: MigrationOptions) -> Adapter:
    """An adapter as LoRA factors for the weights that draw."""
    rank = {"matrix": matrices(params), "factor_rank": options.factors}
    return fit(adapter, spec_of(params), options.assume_base, **rank).adapter
