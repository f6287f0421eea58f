"""HPS: how well people would like pictures for their prompts."""

import numpy as np
from jaxtyping import Float, Num

from prolora_jax.evaluation.metrics.embeddings import paired_cosines


def hps(
    pictures: Num[np.ndarray, "n width"], texts: Num[np.ndarray, "m wide"]
) -> Float[np.ndarray, " n"]:
    """`cos(picture, prompt)` of a tuned OpenCLIP ViT-H/14, picture by picture.

    Wu et al. 2023, Human Preference Score v2 (arXiv 2306.09341); ProLoRA's tables have this number.
    The scale that the weights hold for logits is not in it. Which weights made the embeddings, 2.1
    or 2.0, has to be said beside it: their scores must not be compared.

    Args:
        pictures: projected embeddings of the tuned vision tower.
        texts: those of their prompts by the tuned text tower, row by row.

    Returns:
        From -1 to 1; the metric is their mean.

    Raises:
        UsageError: the two are not of one shape, or a row is zero or not finite.
    """
    return paired_cosines(pictures, texts, "HPS")
