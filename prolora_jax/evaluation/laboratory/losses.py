"""Losses on pictures that no model has seen, with the same noise for every model."""

import numpy as np

from prolora_jax.evaluation.laboratory.data import Pictures, to_latents
from prolora_jax.evaluation.laboratory.diffusion import Predict, TrainingBatch, noised


def exam(pictures: Pictures, *, repeats: int = 4, seed: int = 7) -> TrainingBatch:
    """Each picture at several times, one in each of `repeats` equal parts of [0, 1].

    Args:
        pictures: all are used.
        repeats: noisy versions of each picture; neighbours in the batch.
        seed: of times and noise: common random numbers for whoever is examined.

    Returns:
        `n * repeats` rows.
    """
    rng = np.random.default_rng(seed)
    count = len(pictures.pixels)
    times = (np.arange(repeats) + rng.random((count, repeats))) / repeats
    clean = np.repeat(to_latents(pictures.pixels), repeats, axis=0)
    noise = rng.standard_normal(clean.shape, np.float32)
    words = np.repeat(pictures.words, repeats).astype(np.int32)
    return noised(clean, noise, times.reshape(-1).astype(np.float32), words)


def losses(predict: Predict, batch: TrainingBatch, *, repeats: int = 4) -> np.ndarray:
    """Mean squared error of the velocity for each picture of an exam.

    Args:
        predict: the net.
        batch: from `exam`, or any rows with `repeats` 1.
        repeats: rows of each picture.

    Returns:
        float64 `(n,)`, the mean over a picture's rows and pixels.
    """
    said = predict(batch.noisy, batch.times, batch.words)
    errors = np.mean((said.astype(np.float64) - batch.target) ** 2, axis=(1, 2, 3))
    return errors.reshape(-1, repeats).mean(axis=1)
