"""A run of a sampler as a table of numbers: all samplers here take steps that are linear.

What a sampler carries is a few arrays as large as the latents: the latents themselves and what it
remembers of earlier steps. From these and from what the net says, a step makes the same arrays anew
by sums with fixed weights. So each sampler is a function of NumPy that writes weights down, in
float64, as its paper has them; and one loop serves all (`scheduler.py`).

To write a step down as the paper has it, arrays are stood for by linear forms: vectors of weights
that are added and scaled as the arrays would be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.nets.sampling.training_noise import TrainingNoise

Form = Float[np.ndarray, " terms"]
"""Weights of what is carried, of what the net said, and of the picture that it means."""


@dataclass(frozen=True)
class StepTable:
    """The numbers of a run of `n` steps that carries `k` arrays.

    Attributes:
        times: what the net is told, `(n,)`; whole numbers, but for Euler's.
        start: the standard deviation of the noise to start from.
        shown: by which the latents are multiplied before the net sees them, `(n,)`.
        picture: weights of the latents and of the net's answer in the picture it means, `(n, 2)`.
        update: weights of what is carried after a step, `(n, k, k + 2)`: of what was carried, of
            the net's answer, of the picture.
        noise: by which fresh noise is multiplied before it is added to the latents, `(n,)`.
    """

    times: Float[np.ndarray, " n"]
    start: float
    shown: Float[np.ndarray, " n"]
    picture: Float[np.ndarray, "n 2"]
    update: Float[np.ndarray, "n k terms"]
    noise: Float[np.ndarray, " n"]


def forms(carried: int) -> list[Form]:
    """The forms of what is carried, of the net's answer and of the picture, each by itself."""
    return list(np.eye(carried + 2))


def picture_weights(
    noise: TrainingNoise, signal: Float[np.ndarray, " n"], sigma: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 2"]:
    """Weights of `x` and of the net's answer in the picture, for `x = signal x_0 + sigma e`.

    Args:
        noise: says what the net predicts.
        signal: at each step.
        sigma: likewise, with `signal^2 + sigma^2 = 1`.

    Raises:
        BaseModelError: the net predicts the noise, where nothing else is left.
    """
    if noise.prediction_type == "epsilon" and not signal.all():
        raise BaseModelError(
            "scheduler: found rescale_betas_zero_snr with a net that predicts epsilon; expected "
            "v_prediction, as the noise says nothing of the picture at the last time; choose "
            "another sampler",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
    if noise.prediction_type == "epsilon":
        return np.stack([1 / signal, -sigma / signal], axis=-1)
    if noise.prediction_type == "v_prediction":
        return np.stack([signal, -sigma], axis=-1)
    return np.stack([np.zeros_like(signal), np.ones_like(signal)], axis=-1)


def as_table(
    rows: Sequence[Sequence[Form]],
    *,
    times: Num[np.ndarray, " n"],
    picture: Float[np.ndarray, "n 2"],
    start: float = 1.0,
    shown: Float[np.ndarray, " n"] | None = None,
    noise: Float[np.ndarray, " n"] | None = None,
) -> StepTable:
    """A table of steps, each given as the forms of what is carried after it.

    Args:
        rows: for each step a form for each array that is carried, the latents first.
        times: of `StepTable`, as are the others; without `shown` the net sees the latents whole.
        picture: of `StepTable`.
        start: of `StepTable`.
        shown: of `StepTable`.
        noise: of `StepTable`; None for none.
    """
    count = len(rows)
    return StepTable(
        times=np.asarray(times, np.float64),
        start=float(start),
        shown=np.ones(count) if shown is None else shown,
        picture=picture,
        update=np.asarray(rows, np.float64),
        noise=np.zeros(count) if noise is None else noise,
    )
