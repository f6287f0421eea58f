"""Arms that know nothing, to tell what the others' knowledge is worth."""

from collections.abc import Mapping

import numpy as np

from prolora_jax.evaluation.laboratory.adapters import TrainedFactors


def random_subspace(
    factors: Mapping[str, TrainedFactors], fraction: float, seed: int
) -> dict[str, TrainedFactors]:
    """The `prolora` formula with random spans: `P dW Q + (I - P) dW (I - Q)`.

    Both models get the same random span on each side, so nothing is lost to a bad match: what this
    loses is what dropping the cross blocks costs by itself.

    Args:
        factors: of the adapter as it is.
        fraction: size of the spans, as a share of the shorter side.
        seed: of the spans.

    Returns:
        Factors of twice the rank.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for path, (down, up) in factors.items():
        down, up = (np.asarray(array, np.float64) for array in (down, up))
        k = max(1, round(fraction * min(up.shape[0], down.shape[1])))
        left, right = (_span(rng, size, k) for size in (up.shape[0], down.shape[1]))
        inside_up, inside_down = left @ (left.T @ up), (down @ right) @ right.T
        made[path] = TrainedFactors(
            np.concatenate((inside_down, down - inside_down)).astype(np.float32),
            np.concatenate((inside_up, up - inside_up), axis=1).astype(np.float32),
        )
    return made


def _span(rng: np.random.Generator, size: int, k: int) -> np.ndarray:
    """An orthonormal basis of a random span, `(size, k)`."""
    return np.linalg.qr(rng.standard_normal((size, k)))[0]
