"""Noise, the net's target and sampling: cosine schedule, velocity prediction.

At time `t` in [0, 1]: `x_t = a x_0 + s e`, `a = cos(pi t / 2)`, `s = sin(pi t / 2)`; the net is
shown `1000 t` and predicts `v = a e - s x_0` (Salimans and Ho, arXiv 2202.00512, appendix D), so
`x_0 = a x_t - s v` and `e = s x_t + a v`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from prolora_jax.evaluation.laboratory.data import NULL, Pictures, to_latents

LAST_TIME = 0.98
"""Sampling starts here: at 1 nothing is left of the picture, and nothing to divide by."""

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""`(noisy (n, 4, 4, 4), times (n,) in [0, 1], words (n,)) -> v`."""


class TrainingBatch(NamedTuple):
    """What one training step sees, and what it is to predict.

    Attributes:
        noisy: latents `(n, 4, 4, 4)`.
        times: `(n,)` in [0, 1].
        words: integers `(n,)`.
        target: velocity, as `noisy`.
    """

    noisy: np.ndarray
    times: np.ndarray
    words: np.ndarray
    target: np.ndarray


Draw = Callable[[np.random.Generator], TrainingBatch]


def signal_and_noise(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(a, s)` of times `(n,)`, shaped to be multiplied with latents."""
    angle = (np.asarray(times, np.float32) * np.float32(np.pi / 2))[:, None, None, None]
    return np.cos(angle), np.sin(angle)


def noised(
    clean: np.ndarray, noise: np.ndarray, times: np.ndarray, words: np.ndarray
) -> TrainingBatch:
    """Latents with noise, and the velocity to predict."""
    a, s = signal_and_noise(times)
    return TrainingBatch(a * clean + s * noise, times, words, a * noise - s * clean)


def draw_denoising(pictures: Pictures, size: int, *, dropped: float = 0.1) -> Draw:
    """Batches for the usual denoising loss.

    Args:
        pictures: drawn with replacement.
        size: pictures of a batch.
        dropped: share of them shown with the word for "anything".

    Returns:
        A function from a random generator to a batch.
    """
    latents = to_latents(pictures.pixels)

    def draw(rng: np.random.Generator) -> TrainingBatch:
        places = rng.integers(len(latents), size=size)
        words = np.where(rng.random(size) < dropped, NULL, pictures.words[places])
        noise = rng.standard_normal((size, *latents.shape[1:]), np.float32)
        return noised(latents[places], noise, rng.random(size, np.float32), words.astype(np.int32))

    return draw


def guided(predict: Predict, strength: float) -> Predict:
    """Classifier-free guidance: `v_null + strength (v_word - v_null)` (arXiv 2207.12598)."""
    if strength == 1:
        return predict

    def both(noisy: np.ndarray, times: np.ndarray, words: np.ndarray) -> np.ndarray:
        plain = predict(noisy, times, np.full_like(words, NULL))
        return plain + strength * (predict(noisy, times, words) - plain)

    return both


def ddim_step(
    predict: Predict, noisy: np.ndarray, times: np.ndarray, until: np.ndarray, words: np.ndarray
) -> np.ndarray:
    """One deterministic step from `times` to `until` (DDIM, arXiv 2010.02502)."""
    a, s = signal_and_noise(times)
    v = predict(noisy, times, words)
    clean, noise = np.clip(a * noisy - s * v, -1.5, 1.5), s * noisy + a * v
    a_until, s_until = signal_and_noise(until)
    return a_until * clean + s_until * noise


def sample(
    predict: Predict, words: np.ndarray, *, steps: int, seed: int, strength: float = 1.0
) -> np.ndarray:
    """Latents from noise.

    Args:
        predict: the net.
        words: one for each picture.
        steps: evenly spaced in time.
        seed: of the noise: the same seed starts every model from the same noise.
        strength: of guidance; 1 for none.

    Returns:
        `(n, 4, 4, 4)`.
    """
    rng = np.random.default_rng(seed)
    noisy = rng.standard_normal((len(words), 4, 4, 4), np.float32)
    grid = np.linspace(LAST_TIME, 0, steps + 1, dtype=np.float32)
    model = guided(predict, strength)
    for time, until in zip(grid[:-1], grid[1:], strict=True):
        ones = np.ones(len(words), np.float32)
        noisy = ddim_step(model, noisy, time * ones, until * ones, words)
    return noisy
