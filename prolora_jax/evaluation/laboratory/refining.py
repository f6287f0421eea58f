"""Arms that learn from samples of the models alone, and their teachers without a student."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
from jax.tree_util import Partial

from prolora_jax.engines.progress import Progress
from prolora_jax.evaluation.laboratory.adapters import TrainedFactors, merged, new_factors
from prolora_jax.evaluation.laboratory.data import NULL
from prolora_jax.evaluation.laboratory.diffusion import Predict
from prolora_jax.evaluation.laboratory.nets import forward
from prolora_jax.evaluation.laboratory.trials import Contest
from prolora_jax.nets.unet.config import UNetConfig
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.refine.fitting import FROM_ZERO, RETEACH, FitState, RefineOptions, fit, new_state
from prolora_jax.refine.rows import NoisyRows, Rows, SamplePool, joined, of_words
from prolora_jax.refine.teacher import Teacher, effect_mismatch, taught
from prolora_jax.refine.triggers import (
    NOISES,
    TIME,
    draw_words,
    effects,
    is_style,
    trigger_words,
    word_shares,
)

TEACHERS: Mapping[str, Teacher] = {"delta": "effect", "delta-absolute": "absolute"}
STUDENTS = ("refine", "reteach")
REFINING = (*TEACHERS, *STUDENTS)
WORD_SEED, ADAPTED_SEED, TRIGGER_SEED, ROW_SEED, MISMATCH_SEED = 201, 202, 203, 204, 205
MISMATCH_ROWS = 256
_COMPILES = "compiling the student's step"


@dataclass(frozen=True)
class StudentSettings:
    """Options of an arm with a student; zero leaves a number to the recipe.

    Attributes:
        teacher: of `refine`.
        start: from what `copy` puts beside the target, or from zero; from zero in any case where
            nothing can be copied.
        rows: to learn from.
        steps: of Adam.
        rate: of Adam.
    """

    teacher: Teacher = "effect"
    start: Literal["copy", "zero"] = "copy"
    rows: int = 512
    steps: int = 0
    rate: float = 0.0

    def options(self, control: str, *, from_zero: bool) -> RefineOptions:
        """How the student is fitted."""
        from_copy = RETEACH if control == "reteach" else RefineOptions()
        recipe = FROM_ZERO if from_zero else from_copy
        steps, rate = self.steps or recipe.steps, self.rate or recipe.rate
        return replace(recipe, steps=steps, rate=rate)


@dataclass(frozen=True)
class StudentFacts:
    """What is known of a student beside its losses on held-out pictures.

    Attributes:
        steps: taken; 0 where `reteach` does not apply and the copy stays.
        from_zero: whether nothing was copied.
        loss: of the first and of the last ten steps, on rows.
        curve: the loss of each step.
        mismatch: effect mismatch before and after, on rows that were not learned.
        triggers: words that the adapter answers to.
        style: whether they are most words.
    """

    steps: int
    from_zero: bool
    loss: tuple[float, float] | None
    curve: tuple[float, ...]
    mismatch: tuple[float, float]
    triggers: list[int]
    style: bool


class AdapterSamples:
    """What the source draws with one adapter, and what a student of it is shown.

    Args:
        contest: the adapter and the pair.
    """

    def __init__(self, contest: Contest):
        self.contest, self.samples = contest, contest.pair.samples
        pair = contest.pair
        self.given = pair.workshop.factors(pair.source, contest.adapter, contest.seed)

    @cached_property
    def effects(self) -> np.ndarray:
        """The adapter's effect on each word but the one for "anything"."""
        workshop, source = self.contest.pair.workshop, self.contest.pair.source
        rng = np.random.default_rng(WORD_SEED)
        noise = np.tile(rng.standard_normal((NOISES, 4, 4, 4), np.float32), (NULL, 1, 1, 1))
        words = np.repeat(np.arange(NULL, dtype=np.int32), NOISES)
        times = np.full(len(words), TIME, np.float32)
        changed, plain = (
            workshop.predict(source, factors)(noise, times, words).reshape(NULL, NOISES, -1)
            for factors in (self.given, None)
        )
        return effects(changed, plain)

    def drawn(self, shares: np.ndarray, seed: int, null_share: float) -> SamplePool:
        """Pictures of the source with the adapter."""
        rng, samples = np.random.default_rng(seed), self.samples
        count = len(samples.pool_of_target.clean)
        words = draw_words(shares, count, NULL, rng, null_share=null_share)
        return samples.drawn(samples.of_source(self.given), words, seed)

    @cached_property
    def pool(self) -> SamplePool:
        """A."""
        return self.drawn(word_shares(self.effects), ADAPTED_SEED, 0.1)

    def teacher(self, kind: Teacher) -> Predict:
        """A teacher as a net in the target's place."""
        samples = self.samples
        adapted, plain, own = (
            samples.of_source(self.given),
            samples.of_source(),
            samples.of_target(),
        )

        def predict(noisy: np.ndarray, times: np.ndarray, words: np.ndarray) -> np.ndarray:
            if kind == "absolute":
                return adapted(noisy, times, words)
            answers = (net(noisy, times, words) for net in (own, adapted, plain))
            return np.asarray(taught(kind, *answers))

        return predict

    def refine_rows(self, kind: Teacher, count: int, seed: int = ROW_SEED) -> Rows:
        """Half T, half A, answered by a teacher."""
        pools = self.samples.pool_of_target, self.pool
        return self._answered(self.samples.asked(pools, count, seed), self.teacher(kind))

    def reteach_rows(self, count: int) -> Rows:
        """Trigger words as the source says them, all other words as the target does."""
        triggers = trigger_words(self.effects)
        wanted = np.where(triggers, self.effects, 0.0)
        taught_pool = self.drawn(wanted / wanted.sum(), TRIGGER_SEED, 0.0)
        own = self.samples.pool_of_target
        kept = of_words(own, ~np.isin(own.conditioning, np.flatnonzero(triggers)))
        half = count // 2
        new = self.samples.asked((taught_pool,), half, ROW_SEED)
        old = self.samples.asked((kept,), count - half, ROW_SEED + 1)
        answers = self.teacher("absolute"), self.samples.of_target()
        return joined([self._answered(r, net) for r, net in zip((new, old), answers, strict=True)])

    def mismatch(self, factors: Mapping[str, TrainedFactors]) -> float:
        """Effect mismatch of a student, on rows that none has learned."""
        pools = self.samples.pool_of_target, self.pool
        rows = self.samples.asked(pools, MISMATCH_ROWS, MISMATCH_SEED)
        pair, samples = self.contest.pair, self.samples
        nets = (
            pair.workshop.predict(pair.target, dict(factors)),
            samples.of_target(),
            samples.of_source(self.given),
            samples.of_source(),
        )
        student, own, adapted, plain = (net(*rows) for net in nets)
        return effect_mismatch(student - own, adapted - plain)

    @staticmethod
    def _answered(rows: NoisyRows, net: Predict) -> Rows:
        return rows.answered(net(*rows))


def fitted(
    shown: AdapterSamples,
    control: str,
    settings: StudentSettings,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[dict[str, TrainedFactors], StudentFacts]:
    """The adapter that a student has become, and what is known of it.

    Args:
        shown: samples of the pair and of the adapter.
        control: one of `STUDENTS`.
        settings: of the arm.
        progress: called with (what, done, total): the first step takes as long as all others
            together, as it is compiled, and is a stage of its own.

    Returns:
        Its factors; those of `copy` where `reteach` does not apply.
    """
    contest, pair = shown.contest, shown.contest.pair
    copied, _ = pair.moved(contest.adapter, contest.seed, MigrationOptions(method="copy"))
    from_zero = settings.start == "zero" or not copied
    triggers = trigger_words(shown.effects)
    before = shown.mismatch({} if from_zero else copied)
    facts = StudentFacts(
        steps=0,
        from_zero=from_zero,
        loss=None,
        curve=(),
        mismatch=(before, before),
        triggers=np.flatnonzero(triggers).tolist(),
        style=is_style(triggers),
    )
    if control == "reteach" and (facts.style or not facts.triggers):
        return copied, facts
    workshop = pair.workshop
    recipe, config = workshop.recipe.adapter(contest.adapter), workshop.config(pair.target)
    start = copied
    if from_zero:
        start = new_factors(config, recipe.rank, contest.seed, (recipe.modules,))
    options = settings.options(control, from_zero=from_zero)
    if control == "reteach":
        rows = shown.reteach_rows(settings.rows)
    else:
        rows = shown.refine_rows(settings.teacher, settings.rows)
    net = Partial(student_net(config), workshop.params(pair.target))

    def after(now: FitState) -> None:
        progress(_COMPILES, 1, 1)
        progress("student learns", int(now.step), options.steps)

    progress(_COMPILES, 0, 1)
    state = fit(net, rows, new_state(start, options), options, progress=after)
    made = {path: TrainedFactors(*map(np.asarray, p)) for path, p in state.factors.items()}
    curve = np.asarray(state.losses, np.float64)
    return made, replace(
        facts,
        steps=options.steps,
        loss=(float(curve[:10].mean()), float(curve[-10:].mean())),
        curve=tuple(curve.tolist()),
        mismatch=(before, shown.mismatch(made)),
    )


@cache
def student_net(config: UNetConfig) -> Any:
    """`(params, factors, noisy, times, words) -> v`; one for all parameters of a net's shape."""
    apply = forward(config)

    def predict(params: Any, factors: Any, noisy: Any, times: Any, words: Any) -> Any:
        pairs = {path: TrainedFactors(*pair) for path, pair in factors.items()}
        return apply(merged(params, pairs), noisy, times, words)

    return predict
