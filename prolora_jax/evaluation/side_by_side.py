"""What a base model draws with adapters: as they are, moved to it by each arm, or without any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import msgspec
import numpy as np
from jaxtyping import Float

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.algorithms.factoring import kept_share
from prolora_jax.adapters.fitting import Fitted, fit
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.drawer import (
    NONE,
    Drawer,
    require_heard,
    usual_guidance,
    usual_steps,
)
from prolora_jax.evaluation.grid import write_side_by_side
from prolora_jax.io.adapters.files import load_adapter, refuse_existing
from prolora_jax.io.outputs.protected import require_ending
from prolora_jax.migration.fitted import fit_to
from prolora_jax.migration.opening import open_pair
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import plan_fitted, run_plan
from prolora_jax.nets.adapters.lora import attach
from prolora_jax.nets.adapters.tree import matrices, spec_of
from prolora_jax.nets.pipelines.delta import draw_delta
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline
from prolora_jax.nets.sampling.samplers import Sampler, Spacing
from prolora_jax.nets.text.weighting import Weighting
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.vae.tiles import VaeTile
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.refine.job.bases import DrawingBases, require_one_latent_space
from prolora_jax.subspaces.store import BasisStore

METHODS: tuple[str, ...] = get_args(get_type_hints(MigrationOptions)["method"])
AS_IT_IS, SOURCE, DELTA = "lora", "source", "delta"
ARMS = (NONE, AS_IT_IS, SOURCE, DELTA, *METHODS)
"""`none`: the base alone; `lora`: the adapters as they are; `source`: on the base they are from;
`delta`: their effect there added to what the base predicts, without any file; and the arms of a
migration."""

Pictures = Float[np.ndarray, "rows height width 3"]


@dataclass(frozen=True)
class Request:
    """What to draw, by whom and how; None is for what is usual.

    Attributes:
        base: the base model that draws, as `load_pipeline` takes it.
        arms: the columns.
        prompts: what to draw.
        seeds: of the noise; each prompt is drawn with each.
        files: adapters, used together.
        scales: their strengths, one for each.
        always: an adapter of the base's own for every column, such as LCM's.
        parts: pipeline from which everything but the UNet is taken.
        sampler: takes the steps.
        spacing: where the steps are; None for what the pipeline says.
        dtype: what is computed in.
        negative: what not to draw.
        weighting: which brackets in prompts weigh what they hold.
        steps: of the sampler: 25, with LCM 4.
        guidance: how much the prompt counts: 7.5, for SDXL's family 5, with LCM 1.
        size: height and width in pixels: what the base was trained on.
        at_once: pictures drawn together on each device.
        vae_tile: whether pictures are decoded in tiles.
    """

    base: str | Path
    arms: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    files: tuple[Path, ...] = ()
    scales: tuple[float, ...] = ()
    always: Path | None = None
    parts: str | Path | None = None
    sampler: Sampler = "auto"
    spacing: Spacing | None = None
    dtype: str = "float32"
    negative: str | None = None
    weighting: Weighting = "numbers"
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int | None, int | None] = (None, None)
    at_once: int = 1
    vae_tile: VaeTile = "auto"

    @property
    def rows(self) -> list[str]:
        """Prompt and seed of each row, for people."""
        return [f"{prompt}\nseed {seed}" for prompt in self.prompts for seed in self.seeds]


@dataclass(frozen=True)
class SideBySide:
    """What was drawn.

    Attributes:
        columns: pictures by arm, in the order asked for.
        settings: what they were drawn with, where the request left it open.
        moved: what became of the adapters' modules, by arm of a migration.
        kept: share of each adapter's squared norm that is in the factors it was drawn with, by arm
            of adapters as they are: below 1 where an algorithm's update has none of their rank.
    """

    columns: Mapping[str, Pictures]
    settings: Mapping[str, Any]
    moved: Mapping[str, list[dict[str, int]]] = field(default_factory=dict)
    kept: Mapping[str, list[float]] = field(default_factory=dict)

    def changes(self) -> dict[str, float]:
        """How far each column is from the one without adapters: root mean square, 0 to 1."""
        without = self.columns.get(NONE)
        if without is None:
            return {}
        others = {arm: pictures for arm, pictures in self.columns.items() if arm != NONE}
        return {a: float(np.sqrt(np.mean(np.square(p - without)))) for a, p in others.items()}


def usual_arms(*, moved_by: str | None = None, adapters: bool = True) -> tuple[str, ...]:
    """The columns when none are asked for.

    Args:
        moved_by: the method by which adapters come from another base model, if they do.
        adapters: whether there are any.
    """
    if not adapters:
        return (NONE,)
    return (NONE, AS_IT_IS) if moved_by is None else tuple(dict.fromkeys((NONE, "copy", moved_by)))


def usual_dtype() -> str:
    """What is computed in: float32 on a CPU, else bfloat16."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def draw_to_file(
    request: Request,
    out: str | Path,
    source: str | Path | None = None,
    options: MigrationOptions | None = None,
    *,
    overwrite: bool = False,
    store: BasisStore | None = None,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[SideBySide, dict[str, Any]]:
    """Draw every column from the same noise, as one labelled picture.

    Args:
        request: what to draw.
        out: PNG to write; what it shows stands in it, too.
        source: the base model that the adapters are from; None for the base itself.
        options: of the migrations; the method is each arm's own.
        overwrite: whether an existing picture may be replaced.
        store: where subspaces are found and kept; memory when None.
        workers: processes for what has to be computed.
        progress: called with (what, done, total).

    Returns:
        The pictures, and what was drawn how, for JSON.

    Raises:
        ProloraError: as `draw_side_by_side`; the picture exists, is not named as one, or cannot
            be written.
    """
    out = Path(out)
    bases = [request.base] if source is None else [request.base, source]
    require_ending(out, ".png")
    more = (path for path in (request.always, request.parts) if path is not None)
    refuse_existing(out, overwrite, read=(*bases, *request.files, *more))
    options, pair = options or MigrationOptions(), None
    if source is not None:
        pair = open_pair(source, request.base, store, workers, options.fused)
    drawn = draw_side_by_side(request, source, pair, options, progress)
    summary = {
        "out": str(out),
        "base": str(request.base),
        "source": None if source is None else str(source),
        "lora": [str(file) for file in request.files],
        "scale": list(request.scales),
        "always": None if request.always is None else str(request.always),
        "sampler": request.sampler,
        "spacing": request.spacing,
        "dtype": request.dtype,
        "prompts": list(request.prompts),
        "seeds": list(request.seeds),
        "settings": drawn.settings,
        "columns": list(drawn.columns),
        "changes": drawn.changes(),
        "moved": drawn.moved,
        "kept": drawn.kept,
    }
    note = msgspec.json.encode(summary).decode()
    write_side_by_side(drawn.columns, request.rows, out, note=note)
    return drawn, summary


def draw_side_by_side(
    request: Request,
    source: str | Path | None,
    pair: BasePair | None,
    options: MigrationOptions,
    progress: Progress = lambda stage, done, total: None,
) -> SideBySide:
    """Draw every column from the same noise.

    Args:
        request: what to draw.
        source: the base model that the adapters are from; None for the base itself.
        pair: of that base model and the one that draws.
        options: of the migrations; the method is each arm's own.
        progress: called with (what, done, total).

    Returns:
        The pictures.

    Raises:
        UsageError: a column cannot be drawn from what is given, or the extra `pipelines` is not
            installed.
        AdapterRefused: an adapter cannot be used.
        BaseModelError: a base model cannot be used.
    """
    _require(request, has_source=pair is not None)
    if source is not None and DELTA in request.arms:
        parts = None if request.parts is None else Path(request.parts)
        require_one_latent_space(DrawingBases(Path(source), Path(request.base), None, parts))
    # Before gigabytes are read: a wrong name should not cost minutes.
    files = [_read(file, options) for file in request.files]
    always = request.always and _read(request.always, options)
    loading: dict[str, Any] = {
        "sampler": request.sampler,
        "spacing": request.spacing,
        "dtype": request.dtype,
    }
    pipeline, params = load_pipeline(request.base, parts=request.parts, **loading)
    settings = _settings(request, pipeline)
    given: dict[str, list[Adapter]] = {}
    moved: dict[str, list[dict[str, int]]] = {}
    kept: dict[str, list[float]] = {}
    if AS_IT_IS in request.arms:
        given[AS_IT_IS] = [_factors(adapter, params, options).adapter for adapter in files]
        kept[AS_IT_IS] = [kept_share(adapter) for adapter in given[AS_IT_IS]]
    if pair is not None:
        originals = [fit_to(pair.source, adapter, options) for adapter in files]
        for arm in (arm for arm in request.arms if arm in METHODS):
            chosen = replace(options, method=arm)  # pyright: ignore[reportArgumentType]
            plans = [plan_fitted(fitted, pair, chosen, progress) for fitted in originals]
            done = [
                run_plan(fitted.adapter, pair, plan, progress)
                for fitted, plan in zip(originals, plans, strict=True)
            ]
            # A DoRA that was kept has a magnitude for the weights that draw.
            here = replace(options, assume_base=pair.target.spec.family)
            given[arm] = [_factors(migrated, params, here).adapter for migrated, _ in done]
            moved[arm] = [report.counts for _, report in done]
    usual = replace(options, assume_base=None)
    always = always and _factors(always, params, usual).adapter
    here = [arm for arm in request.arms if arm not in {SOURCE, DELTA}]
    drawer = Drawer(pipeline, params, given, request.scales, settings, always)
    drawn = _columns(here, drawer, request, progress)
    if source is not None and {SOURCE, DELTA} & {*request.arms}:
        base = (pipeline, params) if DELTA in request.arms else None
        del params
        pipeline, params = load_pipeline(source, **loading)
        own = {SOURCE: [_factors(adapter, params, options).adapter for adapter in files]}
        shares = [kept_share(adapter) for adapter in own[SOURCE]]
        kept |= {arm: shares for arm in (SOURCE, DELTA) if arm in request.arms}
        if SOURCE in request.arms:
            drawer = Drawer(pipeline, params, own, request.scales, settings)
            drawn |= _columns([SOURCE], drawer, request, progress)
        if base is not None:
            nets = base, (pipeline, params)
            drawn[DELTA] = _delta(own[SOURCE], request, *nets, settings, progress)
    return SideBySide({arm: drawn[arm] for arm in request.arms}, settings, moved, kept)


def _read(file: Path, options: MigrationOptions) -> Adapter:
    return load_adapter(file, alpha_zero=options.alpha_zero, structured=True)


def _factors(adapter: Adapter, params: Params, options: MigrationOptions) -> Fitted:
    """An adapter as LoRA factors for the weights that draw, of as many columns as options say."""
    rank = {"matrix": matrices(params), "factor_rank": options.factors}
    return fit(adapter, spec_of(params), options.assume_base, **rank)


def _require(request: Request, *, has_source: bool) -> None:
    """Check that the columns asked for can be drawn."""
    for arm in request.arms:
        expected = None
        if arm not in ARMS:
            expected = f"{', '.join(ARMS)}, with commas between"
        elif arm not in {NONE, AS_IT_IS} and not has_source:
            expected = "--source with it"
        elif arm != NONE and not request.files:
            expected = "--lora with it"
        if expected is not None:
            raise UsageError(f"--arms {arm}: expected {expected}", code=Refusal.BAD_OPTION)
    if len(request.scales) != len(request.files):
        raise UsageError(
            f"--scale: found {len(request.scales)} for {len(request.files)} adapters; expected one "
            f"for all, or one for each in their order",
            code=Refusal.BAD_OPTION,
        )
    alone = [arm for arm in (SOURCE, DELTA) if arm in request.arms]
    if request.always is not None and alone:
        raise UsageError(
            f"{request.always}: an adapter of the base cannot be used by the arm {alone[0]}; "
            f"expected one of the two; leave --lcm, --always or {alone[0]} out",
            code=Refusal.BAD_OPTION,
        )


def _settings(request: Request, pipeline: Pipeline) -> dict[str, Any]:
    """The arguments of `generate` that all columns share."""
    steps, guidance = request.steps, request.guidance
    if steps is None:
        steps = usual_steps(pipeline)
    if guidance is None:
        guidance = usual_guidance(pipeline)
    require_heard(request.negative, guidance)
    height, width = (pipeline.pixels if side is None else side for side in request.size)
    return {
        "negative": request.negative,
        "weighting": request.weighting,
        "steps": steps,
        "guidance": guidance,
        "size": (height, width),
        "at_once": request.at_once,
        "vae_tile": request.vae_tile,
    }


def _columns(
    arms: Sequence[str], drawer: Drawer, request: Request, progress: Progress
) -> dict[str, Pictures]:
    found = {arm: drawer.draw(arm, request.prompts, request.seeds, progress) for arm in arms}
    return {arm: pictures.reshape(-1, *pictures.shape[2:]) for arm, pictures in found.items()}


def _delta(
    adapters: Sequence[Adapter],
    request: Request,
    base: tuple[Pipeline, Params],
    source: tuple[Pipeline, Params],
    settings: Mapping[str, Any],
    progress: Progress,
) -> Pictures:
    """Draw with what adapters change on their own base model."""
    pipeline, params = source
    names = {f"adapter{place}": adapter for place, adapter in enumerate(adapters)}
    pictures = draw_delta(
        base,
        (pipeline, attach(params, names, assume_base=spec_of(params).family)),
        request.prompts,
        request.seeds,
        scales=dict(zip(names, request.scales, strict=True)),
        progress=lambda _, done, total: progress(f"drawing: {DELTA}", done, total),
        **settings,
    )
    return pictures.reshape(-1, *pictures.shape[2:])
