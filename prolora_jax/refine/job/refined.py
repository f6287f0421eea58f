"""One adapter refined: three phases, what each has done kept on disk, and a fit that goes on."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.engines.progress import Progress
from prolora_jax.io.outputs.work_folder import WorkFolder
from prolora_jax.nets.adapters.lora import attach, attached_places
from prolora_jax.nets.adapters.tree import spec_of
from prolora_jax.nets.pipelines.answers import embedded
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.unet.loading import Params
from prolora_jax.refine import guard, triggers
from prolora_jax.refine.fitting import RETEACH, FitState, RefineOptions, fit, new_state
from prolora_jax.refine.job import phases
from prolora_jax.refine.job.student import factors_of, student_net, with_factors
from prolora_jax.refine.rows import NoisyRows, Rows, SamplePool
from prolora_jax.refine.teacher import Teacher, effect_mismatch

Load = Callable[[], tuple[Pipeline, Params]]
ADAPTER = "adapter"
KEPT_EVERY = 10
"""Steps after which the fit's state is written."""


@dataclass(frozen=True)
class Recipe:
    """What is asked of a refinement; all that its numbers depend on, beside models and adapter.

    Attributes:
        words: prompts of the pools, without the empty one.
        kind: `auto` tells styles and concepts apart by their words.
        teacher: for styles.
        rows: that the student sees.
        pictures: of a pool.
        draw_steps: of the samplers.
        guidance: of the pools.
        size: height and width in latents.
        seed: of everything.
        at_once: pictures or rows in one batch.
        noises: that each word is tried on.
        fit: how the student is fitted; None for what the way asks for.
    """

    words: tuple[str, ...]
    kind: str = "auto"
    teacher: Teacher = "effect"
    rows: int = 512
    pictures: int = 128
    draw_steps: int = 20
    guidance: float = 1.0
    size: tuple[int, int] = (64, 64)
    seed: int = 0
    at_once: int = 4
    noises: int = triggers.NOISES
    fit: RefineOptions | None = None

    @property
    def drawing(self) -> phases.Drawing:
        """How pictures are drawn."""
        return phases.Drawing(
            count=self.pictures,
            steps=self.draw_steps,
            guidance=self.guidance,
            size=self.size,
            seed=self.seed,
            at_once=self.at_once,
            empty=len(self.words),
        )

    @property
    def prompts(self) -> list[str]:
        """All prompts; the last says nothing."""
        return [*self.words, ""]

    def stamp(self, *content: str) -> str:
        """A digest of the recipe and of what it is for.

        Args:
            content: fingerprints of adapter and base models.
        """
        text = msgspec.json.encode([asdict(self), *content])
        return hashlib.sha256(text).hexdigest()


@dataclass(frozen=True)
class Refinement:
    """What a refinement was, for the report.

    Attributes:
        way: `refine`, `reteach`, or `copy` where the guard keeps a style as it is.
        teacher: of the student; None for a copy.
        disagreement: R.
        losses: L_s(T), L_t(S), L_t(T), L_s(S).
        effects: of each word, as shares of the largest.
        triggers: words that the adapter answers to.
        steps: that the student was fitted for.
        loss_curve: of each step.
        missed: effect mismatch before and after; None for a copy.
    """

    way: guard.Way
    teacher: str | None
    disagreement: float
    losses: dict[str, float]
    effects: dict[str, float]
    triggers: list[str]
    steps: int = 0
    loss_curve: list[float] = field(default_factory=list)
    missed: tuple[float, float] | None = None

    @property
    def sentence(self) -> str:
        """What R says, for people."""
        return guard.sentence(self.disagreement)


class _Theirs(NamedTuple):
    """What phase 1 hands on."""

    pool: SamplePool
    own_loss: float


def refine_adapter(
    given: Adapter,
    copied: Adapter,
    load_source: Load,
    load_target: Load,
    recipe: Recipe,
    work: WorkFolder,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Adapter, Refinement]:
    """Refine one adapter.

    Args:
        given: fitted to the source.
        copied: the same on the target, as `migrate` made it; plain LoRA.
        load_source: the source's pipeline and parameters; called when its phase comes, so that
            one base model is in memory at a time.
        load_target: likewise.
        recipe: what is asked.
        work: where what was done is kept.
        progress: called with (stage, done, total).

    Returns:
        The adapter for the target, and what was done.
    """
    drawing = recipe.drawing
    theirs, shown = _target_first(load_target, recipe, work, progress)
    asked = _source(given, load_source, theirs.pool, shown, recipe, work, progress)

    pipeline, params = load_target()
    told = embedded(pipeline, params, recipe.prompts, {}, at_once=recipe.at_once)
    net = phases.BaseNet(pipeline, params, told, "target")
    losses = {
        "source_on_target": asked.source_on_target,
        "target_on_source": phases.loss(
            net, shown.exam(asked.own, recipe.seed + 5), shown, drawing, progress
        ),
        "target_own": theirs.own_loss,
        "source_own": asked.source_own,
    }
    r = guard.disagreement(**losses)
    is_trigger = triggers.trigger_words(asked.effect)
    style = triggers.is_style(is_trigger) if recipe.kind == "auto" else recipe.kind == "style"
    way = guard.way(r, style=style)
    largest = float(asked.effect.max()) or 1.0
    found = Refinement(
        way=way,
        teacher=None,
        disagreement=r,
        losses=losses,
        effects={w: float(e) / largest for w, e in zip(recipe.words, asked.effect, strict=True)},
        triggers=[w for w, hit in zip(recipe.words, is_trigger, strict=True) if hit],
    )
    if way == "copy":
        return copied, found
    answered = net.answers(asked.rows, shown, drawing, progress=progress, stage="target answers")
    rows = phases.lesson(asked, answered, way, recipe.teacher)
    beside = attach(params, {ADAPTER: copied}, assume_base=spec_of(params).family)
    student_told = embedded(
        pipeline, beside, recipe.prompts, {ADAPTER: 1.0}, at_once=recipe.at_once
    )
    start = factors_of(copied)
    predict = student_net(pipeline, params, student_told, start, shown.last)
    options = recipe.fit or (RETEACH if way == "reteach" else RefineOptions())
    options = replace(options, seed=recipe.seed)
    state = _fitted(predict, rows, new_state(start, options), options, work, progress)
    shapes = {path: module.shape for path, module in spec_of(params).modules.items()}
    modules = with_factors(copied, state.factors, shapes)
    effect = asked.adapted - asked.plain
    before, after = (
        effect_mismatch(_said(predict, f, asked.rows, recipe.at_once) - answered, effect)
        for f in (start, state.factors)
    )
    curve = [float(x) for x in np.asarray(state.losses)]
    done = replace(
        found,
        teacher="absolute" if way == "reteach" else recipe.teacher,
        steps=options.steps,
        loss_curve=curve,
        missed=(before, after),
    )
    return replace(copied, modules=modules), done


def _target_first(
    load: Load, recipe: Recipe, work: WorkFolder, progress: Progress
) -> tuple[_Theirs, phases.Shown]:
    """Phase 1."""
    kept = work.load("target")
    if kept is not None:
        shown = phases.Shown(kept["variances"], str(kept["predicts"].tobytes().decode()))
        pool = SamplePool(kept["clean"], kept["words"])
        return _Theirs(pool, float(kept["loss"])), shown
    pipeline, params = load()
    drawing = recipe.drawing
    told = embedded(pipeline, params, recipe.prompts, {}, at_once=recipe.at_once)
    net = phases.BaseNet(pipeline, params, told, "target")
    shown = phases.Shown(net.kept, net.predicts)
    even = np.full(drawing.empty, 1 / drawing.empty)
    words = triggers.draw_words(
        even, drawing.count, drawing.empty, np.random.default_rng(recipe.seed)
    )
    pool = net.pool(drawing, words, recipe.seed, progress=progress, stage="target draws")
    own = phases.loss(net, shown.exam(pool, recipe.seed + 4), shown, drawing, progress)
    work.save(
        "target",
        {
            "clean": pool.clean,
            "words": pool.conditioning,
            "loss": np.array(own),
            "variances": shown.kept,
            "predicts": np.frombuffer(shown.predicts.encode(), np.uint8),
        },
    )
    return _Theirs(pool, own), shown


def _source(
    given: Adapter,
    load: Load,
    theirs: SamplePool,
    shown: phases.Shown,
    recipe: Recipe,
    work: WorkFolder,
    progress: Progress,
) -> phases.Asked:
    """Phase 2."""
    kept = work.load("source")
    if kept is not None:
        return phases.Asked(
            effect=kept["effect"],
            rows=NoisyRows(kept["noisy"], kept["times"], kept["words"]),
            from_target=kept["from_target"].astype(bool),
            plain=kept["plain"],
            adapted=kept["adapted"],
            own=SamplePool(kept["own_clean"], kept["own_words"]),
            source_on_target=float(kept["source_on_target"]),
            source_own=float(kept["source_own"]),
        )
    pipeline, params = load()
    params = attach(params, {ADAPTER: given}, assume_base=spec_of(params).family)
    scales: dict[str, Any] = {ADAPTER: 1.0}
    told = embedded(pipeline, params, recipe.prompts, {}, at_once=recipe.at_once)
    with_texts = told
    if attached_places(params, ADAPTER) - {"unet"}:
        with_texts = embedded(pipeline, params, recipe.prompts, scales, at_once=recipe.at_once)
    asked = phases.ask_source(
        phases.BaseNet(pipeline, params, told, "source"),
        with_texts,
        scales,
        theirs,
        shown,
        recipe.drawing,
        recipe.rows,
        noises=recipe.noises,
        progress=progress,
    )
    work.save(
        "source",
        {
            "effect": asked.effect,
            "noisy": asked.rows.noisy,
            "times": asked.rows.times,
            "words": asked.rows.conditioning,
            "from_target": asked.from_target,
            "plain": asked.plain,
            "adapted": asked.adapted,
            "own_clean": asked.own.clean,
            "own_words": asked.own.conditioning,
            "source_on_target": np.array(asked.source_on_target),
            "source_own": np.array(asked.source_own),
        },
    )
    return asked


def _fitted(
    predict: Any,
    rows: Rows,
    state: FitState,
    options: RefineOptions,
    work: WorkFolder,
    progress: Progress,
) -> FitState:
    """The fit, taken up where it was left."""
    leaves, shape = jax.tree.flatten(state)
    kept = work.load("student")
    if kept is not None and len(kept) == len(leaves):
        state = jax.tree.unflatten(shape, [jnp.asarray(kept[f"{i:05}"]) for i in range(len(kept))])

    def after(now: FitState) -> None:
        step = int(now.step)
        progress("student", step, options.steps)
        if step % KEPT_EVERY == 0 or step == options.steps:
            arrays = {f"{i:05}": np.asarray(a) for i, a in enumerate(jax.tree.leaves(now))}
            work.save("student", arrays)

    return fit(predict, rows, state, options, progress=after)


def _said(predict: Any, factors: Any, rows: NoisyRows, at_once: int) -> np.ndarray:
    """What the student says of all rows."""
    ask = jax.jit(lambda net, *given: net(*given))
    said = [
        np.asarray(
            ask(
                predict,
                factors,
                rows.noisy[begin : begin + at_once],
                rows.times[begin : begin + at_once],
                rows.conditioning[begin : begin + at_once],
            )
        )
        for begin in range(0, len(rows.noisy), at_once)
    ]
    return np.concatenate(said)
