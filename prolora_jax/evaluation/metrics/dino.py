"""DINO: how alike two sets of pictures are to DINOv2, which tells subjects apart."""

import numpy as np
from jaxtyping import Float, Num

from prolora_jax.evaluation.metrics.embeddings import mean_cosines, paired_cosines


def dino(
    pictures: Num[np.ndarray, "n width"],
    references: Num[np.ndarray, "m wide"],
    *,
    paired: bool = False,
) -> Float[np.ndarray, " n"]:
    """Mean `cos(picture, reference)` over the references, one a picture; the metric is its mean.

    Ruiz et al. 2023, DreamBooth (arXiv 2208.12242), section 4.2, whose encoder is the first DINO's
    ViT-S/16: with DINOv2 (Oquab et al. 2023, arXiv 2304.07193) numbers are not comparable to it.

    Args:
        pictures: class tokens behind the last norm.
        references: those of the pictures that are to be met.
        paired: whether each picture has its own reference, the row of the same number.

    Returns:
        From -1 to 1.

    Raises:
        UsageError: shapes do not go together, or a row is zero or not finite.
    """
    measure = paired_cosines if paired else mean_cosines
    return measure(pictures, references, "DINO")
