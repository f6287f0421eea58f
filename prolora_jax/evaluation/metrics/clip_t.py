"""CLIP-T: how well pictures show what their prompts say."""

import numpy as np
from jaxtyping import Float, Num

from prolora_jax.evaluation.metrics.embeddings import paired_cosines


def clip_t(
    pictures: Num[np.ndarray, "n width"], texts: Num[np.ndarray, "m wide"]
) -> Float[np.ndarray, " n"]:
    """`cos(picture, prompt)` of CLIP's two projections, one a picture; the metric is its mean.

    Ruiz et al. 2023, DreamBooth (arXiv 2208.12242), section 4.2. CLIPScore (Hessel et al. 2021,
    arXiv 2104.08718) is 2.5 times this, without what is below zero.

    Args:
        pictures: projected embeddings of pictures, of any length.
        texts: those of their prompts, row by row.

    Returns:
        From -1 to 1; the same picture and prompt give the same, whatever else is judged.

    Raises:
        UsageError: the two are not of one shape, or a row is zero or not finite.
    """
    return paired_cosines(pictures, texts, "CLIP-T")
