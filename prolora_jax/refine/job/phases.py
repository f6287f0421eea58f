"""One adapter's refinement in three phases, each with one net on the device.

1. the target draws T, and says how well it knows it;
2. the source, with the adapter and without, tries the words, draws S and A, and answers all rows;
3. the target says how well it knows S, answers the rows itself, and the student is fitted.

What one phase hands to the next are arrays of the host. So that no phase has to wait for the guard,
which needs both nets, the rows of phase 2 serve `refine` and `reteach`: A is drawn by words in
proportion to their effect, and `reteach` takes the triggers' pictures of A and the others' of T.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from prolora_jax.engines.progress import Progress
from prolora_jax.nets.adapters.lora import Scale
from prolora_jax.nets.pipelines.answers import answers, draw_latents
from prolora_jax.nets.pipelines.pipeline import Pipeline, Told
from prolora_jax.nets.sampling import levels
from prolora_jax.nets.unet.loading import Params
from prolora_jax.refine import guard, teacher, triggers
from prolora_jax.refine.parametrisation import converted, predicted
from prolora_jax.refine.rows import NoisyRows, Rows, SamplePool, joined, noised_rows

GUARD_ROWS = 512
"""Noised samples that each of the guard's losses is a mean over."""


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn.

    Attributes:
        count: pictures of a pool.
        steps: of the pipeline's sampler.
        guidance: how much the prompt counts.
        size: height and width in latents.
        seed: of words, noise and times.
        at_once: pictures or rows in one batch.
        empty: place of the prompt that says nothing; the words come before it.
    """

    count: int
    steps: int
    guidance: float
    size: tuple[int, int]
    seed: int
    at_once: int
    empty: int


@dataclass(frozen=True)
class BaseNet:
    """A base model on the device.

    Attributes:
        pipeline: its nets.
        params: of all components, with the adapter beside the kernels where there is one.
        told: what its UNet is told of each prompt without the adapter.
        name: for messages.
    """

    pipeline: Pipeline
    params: Params
    told: Told
    name: str

    @property
    def kept(self) -> Float[np.ndarray, " times"]:
        """What is left of a picture's variance at each time."""
        return levels.variances(self.pipeline.sampler)

    @property
    def predicts(self) -> Any:
        """What it predicts."""
        return levels.prediction_of(self.pipeline.sampler, self.name)

    def pool(
        self,
        drawing: Drawing,
        places: Int[np.ndarray, " n"],
        first_seed: int,
        *,
        told: Told | None = None,
        scales: dict[str, Scale] | None = None,
        progress: Progress,
        stage: str,
    ) -> SamplePool:
        """Draw samples.

        Args:
            drawing: how.
            places: the prompt of each.
            first_seed: of their noise.
            told: with an adapter's text encoders; the base's own if None.
            scales: of adapters.
            progress: called with the stage, done, total.
            stage: what to call it.
        """
        latents = draw_latents(
            self.pipeline,
            self.params,
            self.told if told is None else told,
            places,
            [first_seed + i for i in range(len(places))],
            scales=scales or {},
            size=drawing.size,
            steps=drawing.steps,
            guidance=drawing.guidance,
            empty=drawing.empty,
            at_once=drawing.at_once,
            count=lambda done, total: progress(stage, done, total),
        )
        return SamplePool(latents, places.astype(np.int32))

    def answers(
        self,
        rows: NoisyRows,
        shown: "Shown",
        drawing: Drawing,
        *,
        told: Told | None = None,
        scales: dict[str, Scale] | None = None,
        progress: Progress,
        stage: str,
    ) -> np.ndarray:
        """What it says of rows, in the parametrisation they are compared in.

        Args:
            rows: with times from 0 to 1 of the net that `shown` names.
            shown: how the rows were noised, and what is to be said of them.
            drawing: how many at once.
            told: with an adapter's text encoders; the base's own if None.
            scales: of adapters.
            progress: called with the stage, done, total.
            stage: what to call it.
        """
        trained = rows.times * shown.last
        times = levels.same_noise(shown.kept, self.kept, trained)
        said = answers(
            self.pipeline,
            self.params,
            self.told if told is None else told,
            rows.noisy,
            times,
            rows.conditioning,
            scales=scales or {},
            at_once=drawing.at_once,
            count=lambda done, total: progress(stage, done, total),
        )
        signal, noise = (x.reshape(-1, 1, 1, 1) for x in shown.levels(rows.times))
        return np.asarray(
            converted(said, rows.noisy, signal, noise, of=self.predicts, to=shown.predicts)
        )


@dataclass(frozen=True, eq=False)
class Shown:
    """The noise of the target's training: rows of both nets have it.

    Attributes:
        kept: what is left of a picture's variance at each time.
        predicts: the parametrisation in which answers are compared.
    """

    kept: Float[np.ndarray, " times"]
    predicts: Any

    @property
    def last(self) -> float:
        """The last time."""
        return float(len(self.kept) - 1)

    def levels(self, times: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Signal and noise at times from 0 to 1."""
        return levels.signal_and_noise(self.kept, times * self.last)

    def exam(self, pool: SamplePool, seed: int) -> Rows:
        """Noised samples, and what a net that knows them would say: for the guard's losses."""
        rng = np.random.default_rng(seed)
        size = min(GUARD_ROWS, 4 * len(pool.clean))
        places = np.resize(rng.permutation(len(pool.clean)), size)
        clean, told = pool.clean[places], pool.conditioning[places]
        times = ((np.arange(size) + rng.random(size)) / size).astype(np.float32)
        signal, noise = (x.reshape(-1, 1, 1, 1) for x in self.levels(times))
        added = rng.standard_normal(clean.shape, np.float32)
        target = predicted(self.predicts, clean, added, signal, noise)
        return Rows(signal * clean + noise * added, times, told, target)


class Asked(NamedTuple):
    """What the source has said.

    Attributes:
        effect: of each word.
        rows: half of T, half of A.
        from_target: whether a row is of T, `(n,)`.
        plain: the source's answers.
        adapted: those of the source with the adapter.
        own: S.
        source_on_target: L_s(T).
        source_own: L_s(S).
    """

    effect: Float[np.ndarray, " words"]
    rows: NoisyRows
    from_target: np.ndarray
    plain: np.ndarray
    adapted: np.ndarray
    own: SamplePool
    source_on_target: float
    source_own: float


def loss(net: BaseNet, exam: Rows, shown: Shown, drawing: Drawing, progress: Progress) -> float:
    """Mean squared error of a net on noised samples; one of the guard's four losses."""
    asked = NoisyRows(exam.noisy, exam.times, exam.conditioning)
    said = net.answers(asked, shown, drawing, progress=progress, stage="guard")
    return float(np.mean((said.astype(np.float64) - exam.target) ** 2))


def word_effects(
    net: BaseNet,
    adapted_told: Told,
    scales: dict[str, Scale],
    shown: Shown,
    drawing: Drawing,
    noises: int,
    progress: Progress,
) -> Float[np.ndarray, " words"]:
    """How much an adapter changes the source's answer to pure noise, by word.

    Args:
        net: the source, with the adapter beside its kernels.
        adapted_told: with the adapter's text encoders.
        scales: of the adapter.
        shown: the noise of the target's training.
        drawing: of the pools.
        noises: tried for each word.
        progress: called with the stage, done, total.
    """
    rng = np.random.default_rng(drawing.seed)
    words, channels = drawing.empty, net.pipeline.unet.config.tensors.in_channels
    some = rng.standard_normal((noises, channels, *drawing.size), np.float32)
    noisy = np.tile(some, (words, 1, 1, 1))
    times = np.full(len(noisy), triggers.TIME, np.float32)
    rows = NoisyRows(noisy, times, np.repeat(np.arange(words, dtype=np.int32), noises))
    plain = net.answers(rows, shown, drawing, progress=progress, stage="words")
    changed = net.answers(
        rows, shown, drawing, told=adapted_told, scales=scales, progress=progress, stage="words"
    )
    return triggers.effects(
        changed.reshape(words, noises, *changed.shape[1:]),
        plain.reshape(words, noises, *plain.shape[1:]),
    )


def ask_source(
    net: BaseNet,
    adapted_told: Told,
    scales: dict[str, Scale],
    theirs: SamplePool,
    shown: Shown,
    drawing: Drawing,
    rows: int,
    *,
    noises: int = triggers.NOISES,
    progress: Progress,
) -> Asked:
    """Phase 2.

    Args:
        net: the source, with the adapter beside its kernels.
        adapted_told: with the adapter's text encoders.
        scales: of the adapter.
        theirs: T, what the target has drawn.
        shown: the noise of the target's training.
        drawing: of the pools.
        rows: that the student will see.
        noises: on which each word is tried.
        progress: called with the stage, done, total.
    """
    effect = word_effects(net, adapted_told, scales, shown, drawing, noises, progress)
    rng = np.random.default_rng(drawing.seed + 1)
    even = np.full(drawing.empty, 1 / drawing.empty)
    some = triggers.draw_words(even, drawing.count, drawing.empty, rng)
    own = net.pool(drawing, some, drawing.seed + 10_000, progress=progress, stage="source draws")
    words = triggers.draw_words(triggers.word_shares(effect), drawing.count, drawing.empty, rng)
    adapted = net.pool(
        drawing,
        words,
        drawing.seed + 20_000,
        told=adapted_told,
        scales=scales,
        progress=progress,
        stage="source with the adapter draws",
    )
    half = rows // 2
    counts = half, rows - half
    parts = [
        noised_rows([pool], count, shown.levels, drawing.seed + 2 + place)
        for place, (pool, count) in enumerate(zip((theirs, adapted), counts, strict=True))
    ]
    both: NoisyRows = joined(parts)
    ask: dict[str, Any] = {"progress": progress, "stage": "source answers"}
    return Asked(
        effect=effect,
        rows=both,
        from_target=np.arange(rows) < half,
        plain=net.answers(both, shown, drawing, **ask),
        adapted=net.answers(both, shown, drawing, told=adapted_told, scales=scales, **ask),
        own=own,
        source_on_target=loss(net, shown.exam(theirs, drawing.seed + 4), shown, drawing, progress),
        source_own=loss(net, shown.exam(own, drawing.seed + 5), shown, drawing, progress),
    )


def lesson(asked: Asked, own: np.ndarray, way: guard.Way, kind: teacher.Teacher) -> Rows:
    """What the student is shown.

    Args:
        asked: of the source.
        own: the target's answers to the same rows.
        way: `refine` or `reteach`.
        kind: of teacher, for `refine`.

    Returns:
        Rows with answers; of `reteach` those of A that show a trigger, as the source with the
        adapter says, and those of T that show none, as the target says.
    """
    if way == "refine":
        return asked.rows.answered(teacher.taught(kind, own, asked.adapted, asked.plain))
    is_trigger = np.append(triggers.trigger_words(asked.effect), False)
    shows = is_trigger[asked.rows.conditioning]
    chosen = np.where(asked.from_target, ~shows, shows)
    target = np.where(asked.from_target[:, None, None, None], own, asked.adapted)
    rows = asked.rows
    return Rows(rows.noisy[chosen], rows.times[chosen], rows.conditioning[chosen], target[chosen])
