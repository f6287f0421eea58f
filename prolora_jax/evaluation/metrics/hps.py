"""HPS: how well people would like pictures for their prompts."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Num

from prolora_jax.evaluation.metrics.embeddings import paired_cosines

HpsVersion = Literal["v2.1", "v2.0"]


class HpsScores(NamedTuple):
    """Scores, and by which weights: those of different versions must not be compared.

    Attributes:
        scores: one for each picture; about 20 to 35.
        version: of the weights.
    """

    scores: Float[np.ndarray, " n"]
    version: HpsVersion


def hps(
    pictures: Num[np.ndarray, "n width"],
    texts: Num[np.ndarray, "m wide"],
    *,
    version: HpsVersion = "v2.1",
) -> HpsScores:
    """`100 cos(picture, prompt)` of a tuned OpenCLIP ViT-H/14, picture by picture.

    Wu et al. 2023, Human Preference Score v2 (arXiv 2306.09341). Its program prints the cosine, and
    its tables that times 100. The scale that the weights hold for logits is not in it.

    Args:
        pictures: projected embeddings of the tuned vision tower.
        texts: those of their prompts by the tuned text tower, row by row.
        version: of the weights that made both.

    Returns:
        The scores; the metric is their mean.

    Raises:
        UsageError: the two are not of one shape, or a row is zero or not finite.
    """
    return HpsScores(100 * paired_cosines(pictures, texts, f"HPS {version}"), version)
