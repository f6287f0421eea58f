"""LPIPS diversity: how differently the pictures of one set look."""

import numpy as np
from jaxtyping import Num

from prolora_jax.errors import Refusal, UsageError


def lpips_diversity(distances: Num[np.ndarray, "n n"]) -> float:
    """The mean LPIPS of two different pictures of a set.

    As Ruiz et al. 2023 (DreamBooth, arXiv 2208.12242), section 4.3, have it of pictures of one
    subject and one prompt; LPIPS is Zhang et al. 2018 (arXiv 1801.03924).

    Args:
        distances: of all pairs, symmetric (`scoring.lpips_distances`).

    Returns:
        Zero where all pictures are the same; more is more diverse.

    Raises:
        UsageError: there are fewer than two pictures, or a distance is not finite.
    """
    n = len(distances)
    if n < 2:
        raise UsageError(
            f"LPIPS diversity: found {n} pictures; expected at least 2; draw more",
            code=Refusal.BAD_OPTION,
        )
    pairs = distances[np.triu_indices(n, 1)].astype(np.float64)
    if not np.isfinite(pairs).all():
        raise UsageError(
            f"LPIPS diversity: found {int((~np.isfinite(pairs)).sum())} distances that are not "
            f"finite; expected numbers; leave these pictures out",
            code=Refusal.NON_FINITE,
        )
    return float(pairs.mean())
