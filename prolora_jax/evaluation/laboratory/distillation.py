"""Batches whose target comes from another net: for pruned nets, and for nets of few steps."""

import numpy as np

from prolora_jax.evaluation.laboratory.data import Pictures, to_latents
from prolora_jax.evaluation.laboratory.diffusion import (
    LAST_TIME,
    Draw,
    Predict,
    TrainingBatch,
    ddim_step,
    guided,
    noised,
    signal_and_noise,
)

STRIDES = 4
"""Steps in which a hastened net makes a picture."""
SUBSTEPS = 4
"""Steps of the teacher in one of them."""
GUIDANCE = 2.0
"""Strength of the guidance that is distilled into the student, as in LCM (arXiv 2310.04378)."""
JUMP_GRID = np.linspace(LAST_TIME, 0, STRIDES + 1, dtype=np.float32)
"""The times that a hastened net knows, and 0."""


def draw_taught(draw: Draw, teacher: Predict) -> Draw:
    """Batches with half of the target from a teacher.

    The squared distance to the mean of two targets has the gradient of the mean of the squared
    distances: one training step serves both losses.
    """

    def taught(rng: np.random.Generator) -> TrainingBatch:
        batch = draw(rng)
        said = teacher(batch.noisy, batch.times, batch.words)
        return batch._replace(target=(batch.target + said) / 2)

    return taught


def jumps(teacher: Predict, pictures: Pictures, count: int, seed: int) -> TrainingBatch:
    """Where a student's single step has to land: where the teacher's several steps do.

    Progressive distillation (Salimans and Ho, arXiv 2202.00512, appendix G), `SUBSTEPS` steps at
    once and with guidance: the velocity with which one DDIM step from `t` to `u` ends at the
    teacher's `x_u`.

    Args:
        teacher: the net without guidance.
        pictures: drawn with replacement.
        count: how many.
        seed: of pictures, noise and times.

    Returns:
        `count` rows.
    """
    rng = np.random.default_rng(seed)
    places = rng.integers(len(pictures.pixels), size=count)
    clean = to_latents(pictures.pixels[places])
    words = pictures.words[places].astype(np.int32)
    times = JUMP_GRID[rng.integers(STRIDES, size=count)]
    noise = rng.standard_normal(clean.shape, np.float32)
    start = noised(clean, noise, times, words).noisy
    return TrainingBatch(start, times, words, jumping(teacher)(start, times, words))


def jumping(teacher: Predict) -> Predict:
    """A net that says at each time of `JUMP_GRID` where a teacher's guided steps end.

    Args:
        teacher: the net without guidance.

    Returns:
        The velocity with which one DDIM step to the next time of the grid ends at the teacher's
        picture; it knows no other times.
    """
    model = guided(teacher, GUIDANCE)

    def predict(start: np.ndarray, times: np.ndarray, words: np.ndarray) -> np.ndarray:
        stride = np.abs(times[:, None] - JUMP_GRID[None, :STRIDES]).argmin(axis=1)
        until, noisy = JUMP_GRID[stride + 1], start
        for k in range(SUBSTEPS):
            now, then = (times + (until - times) * np.float32(j / SUBSTEPS) for j in (k, k + 1))
            noisy = ddim_step(model, noisy, now, then, words)
        a, s = signal_and_noise(times)
        a_until, s_until = signal_and_noise(until)
        ratio = s_until / s
        landed = (noisy - ratio * start) / (a_until - ratio * a)
        return (a * start - landed) / s

    return predict


def draw_rows(rows: TrainingBatch, size: int) -> Draw:
    """Batches of fixed rows, drawn with replacement."""

    def draw(rng: np.random.Generator) -> TrainingBatch:
        places = rng.integers(len(rows.times), size=size)
        return TrainingBatch(*(array[places] for array in rows))

    return draw
