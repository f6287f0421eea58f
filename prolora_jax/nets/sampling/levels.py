"""How much of a picture is left at each time of a net's training, and what the net predicts."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.nets.sampling.scheduler import TableSampler

PREDICTED = ("epsilon", "v_prediction")


def signal_and_noise(
    kept: Float[np.ndarray, " times"], times: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """`a` and `s` at times of the training, between two whole ones by the line between both.

    Args:
        kept: of the net, `TrainingNoise.kept`.
        times: from 0 to the last of the training.

    Returns:
        Signal and noise, float32.
    """
    left = np.interp(times, np.arange(len(kept)), kept)
    return np.sqrt(left).astype(np.float32), np.sqrt(1 - left).astype(np.float32)


def same_noise(
    kept: Float[np.ndarray, " times"],
    other: Float[np.ndarray, " others"],
    times: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """The times at which another net's training had the same ratio of signal to noise.

    Args:
        kept: of the net that `times` are of, `TrainingNoise.kept`.
        other: of the other net.
        times: of the first.

    Returns:
        Times of the other, not whole; the same ones where both were trained alike.
    """
    if np.array_equal(kept, other):
        return times
    left = np.interp(times, np.arange(len(kept)), kept)
    return np.interp(-left, -other, np.arange(len(other), dtype=np.float64))


def prediction_of(sampler: TableSampler, origin: str) -> Literal["epsilon", "v_prediction"]:
    """What the net of a pipeline predicts: `epsilon` or `v_prediction`.

    Args:
        sampler: of the pipeline.
        origin: what to call the pipeline in messages.

    Raises:
        BaseModelError: another kind.
    """
    named = sampler.config.prediction_type
    if named == "epsilon" or named == "v_prediction":
        return named
    raise BaseModelError(
        f"{origin}: the net predicts {named!r}; expected {' or '.join(PREDICTED)}; what it "
        f"says cannot be compared with another net's",
        code=Refusal.UNSUPPORTED_CONFIG,
    )
