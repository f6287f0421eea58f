"""What a student is shown: noised samples, and the answers to them (docs/refine.md 3).

Samples and rows stay on the host: each phase of a refinement has one net on the device.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

Levels = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Signal `a` and noise `s` at times `(n,)` in [0, 1], `(n,)` each."""


class SamplePool(NamedTuple):
    """Pictures that a model made, and what it was told.

    Attributes:
        clean: latents `(n, ...)`.
        conditioning: a tree of arrays `(n, ...)`.
    """

    clean: np.ndarray
    conditioning: Any


class NoisyRows(NamedTuple):
    """What nets are asked.

    Attributes:
        noisy: latents with noise `(n, ...)`.
        times: `(n,)` in [0, 1].
        conditioning: a tree of arrays `(n, ...)`.
    """

    noisy: np.ndarray
    times: np.ndarray
    conditioning: Any

    def answered(self, target: Any) -> "Rows":
        """The rows with the answers that are to be learned."""
        return Rows(self.noisy, self.times, self.conditioning, np.asarray(target))


class Rows(NamedTuple):
    """What a student learns from.

    Attributes:
        noisy: latents with noise `(n, ...)`.
        times: `(n,)` in [0, 1].
        conditioning: a tree of arrays `(n, ...)`.
        target: the answers, as `noisy`.
    """

    noisy: Any
    times: Any
    conditioning: Any
    target: Any


def noised_rows(
    pools: Sequence[SamplePool],
    count: int,
    levels: Levels,
    seed: int,
    grid: Float[np.ndarray, " times"] | None = None,
) -> NoisyRows:
    """Samples with noise, as many of each pool, each sample about as often as the others.

    Args:
        pools: of one kind of latents and conditioning.
        count: of all rows; what is left over goes to the first pools.
        levels: signal and noise of a time.
        seed: of samples, noise and times.
        grid: times to draw from, for a net that knows no others; uniform in [0, 1] if None.

    Returns:
        Rows, pool after pool, float32.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for place, pool in enumerate(pools):
        size = count // len(pools) + (place < count % len(pools))
        rounds = -(-size // len(pool.clean))
        order = np.concatenate([rng.permutation(len(pool.clean)) for _ in range(rounds)])[:size]
        clean = np.asarray(pool.clean[order], np.float32)
        times = rng.random(size, np.float32) if grid is None else rng.choice(grid, size)
        signal, noise = (
            np.asarray(level, np.float32).reshape(-1, *(1,) * (clean.ndim - 1))
            for level in levels(times)
        )
        added = rng.standard_normal(clean.shape, np.float32)
        told = jax.tree.map(lambda array, order=order: array[order], pool.conditioning)
        parts.append(NoisyRows(signal * clean + noise * added, times.astype(np.float32), told))
    return joined(parts)


def joined(parts: Sequence[Any]) -> Any:
    """Several `NoisyRows`, or several `Rows`, as one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def of_words(pool: SamplePool, chosen: np.ndarray) -> SamplePool:
    """Some samples of a pool.

    Args:
        pool: samples.
        chosen: whether each is taken, `(n,)`.

    Returns:
        Those alone.
    """
    return jax.tree.map(lambda array: array[chosen], pool)
