"""CSD: how alike the style of two sets of pictures is."""

import numpy as np
from jaxtyping import Float, Num

from prolora_jax.evaluation.metrics.embeddings import mean_cosines, paired_cosines


def csd(
    pictures: Num[np.ndarray, "n width"],
    references: Num[np.ndarray, "m wide"],
    *,
    paired: bool = False,
) -> Float[np.ndarray, " n"]:
    """Mean cosine of style descriptors over all references, picture by picture.

    Somepalli et al. 2024, Measuring Style Similarity in Diffusion Models (arXiv 2404.01292). The
    metric is the mean; CSD-MMD is `mmd` of the same descriptors at length one.

    Args:
        pictures: descriptors, `last_layer_style` of CSD.
        references: those of pictures in the style that is to be met.
        paired: whether each picture has its own reference, the row of the same number.

    Returns:
        From -1 to 1.

    Raises:
        UsageError: shapes do not go together, or a row is zero or not finite.
    """
    measure = paired_cosines if paired else mean_cosines
    return measure(pictures, references, "CSD")
