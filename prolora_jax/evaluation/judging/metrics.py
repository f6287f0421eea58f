"""Which metrics there are, which encoder each looks through, and what it compares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from prolora_jax.evaluation.metrics.clip_i import clip_i
from prolora_jax.evaluation.metrics.clip_t import clip_t
from prolora_jax.evaluation.metrics.csd import csd
from prolora_jax.evaluation.metrics.dino import dino
from prolora_jax.evaluation.metrics.embeddings import unit
from prolora_jax.evaluation.metrics.fd_dino import fd_dino
from prolora_jax.evaluation.metrics.hps import hps
from prolora_jax.evaluation.metrics.mmd import mmd

Rows = Float[np.ndarray, "n width"]
Beside = Literal["prompts", "references", "itself"]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        encoder: of `encoders.ENCODERS`.
        beside: what an arm's pictures are compared with: their prompts, references (pictures of the
            subject, or of the arm `trained`), or each other.
        more_is_better: which way is better; None where neither is.
        of_pictures: a score for each picture, from its row and the other side's.
        of_sets: a number for the whole set, with what it depends on.
    """

    encoder: str
    beside: Beside
    more_is_better: bool | None
    of_pictures: Callable[[Rows, Rows], Float[np.ndarray, " n"]] | None = None
    of_sets: Callable[[Rows, Rows], dict[str, Any]] | None = None


def _mmd_of_styles(one: Rows, other: Rows) -> dict[str, Any]:
    return mmd(unit(one, "CSD-MMD"), unit(other, "CSD-MMD"))._asdict()


METRICS: Mapping[str, Metric] = {
    "hps": Metric("hps-v2.1", "prompts", True, hps),
    "hps-v2.0": Metric("hps-v2.0", "prompts", True, hps),
    "clip-t": Metric("clip", "prompts", True, clip_t),
    "clip-i": Metric("clip", "references", True, clip_i),
    "dino": Metric("dinov2-base", "references", True, dino),
    "csd": Metric("csd", "references", True, csd),
    "csd-mmd": Metric("csd", "references", False, of_sets=_mmd_of_styles),
    "fd-dino": Metric(
        "dinov2-large", "references", False, of_sets=lambda x, y: fd_dino(x, y)._asdict()
    ),
    "lpips-diversity": Metric("lpips", "itself", None),
}
"""Metrics by name; `lpips-diversity` looks at pairs of pictures of one prompt."""
