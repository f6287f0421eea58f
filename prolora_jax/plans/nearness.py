"""Weights that are so close that their subspaces need not be computed: copies of one another.

A packed weight and the weight that was packed are one: what lies between them is the packing's
error. A copy is right there, and whatever moves an update along their subspaces moves it by that
error, which at 4 bits is 15 to 60 % of an update (docs/method.md 3).

With `--gate auto` close relatives are copied, too. No bound on the similarity of subspaces follows
from a distance of weights alone (docs/method.md 3): it takes the singular values, and they are what
costs. So the limit is calibrated, and stands only where it was.
"""

import math

from prolora_jax.plans.options import MigrationOptions

CLOSE_DRIFT = 0.125
"""`||W_t - W_s|| / ||W_s||` up to which two weights are close.

Calibrated by `tests/plans/test_nearness.py`: of weights with eight kinds of spectra, three shapes,
after changes of six kinds of this size, none is less similar than 0.8.
"""

CALIBRATED_SIMILARITY = 0.8
CALIBRATED_ENERGY = (0.8, 0.95)
"""The largest `--min-similarity`, and the `--basis-rank energy=e`, for which it was calibrated."""

CLOSE_WEIGHTS = "close-weights"
"""Flag of a module that was copied because its weights are close; no subspaces were computed."""


TWIN_COSINE = 0.99
"""Cosine of two weights, one of them packed, from which they are taken for one.

8-bit packings give 0.999 and more of the weight that was packed, 4-bit ones 0.992 to 0.997."""

PACKED_TWIN = "packed-twin"
"""Flag of a module that was copied because its weights are one but for how they are packed."""


def twins_are_copied(options: MigrationOptions) -> bool:
    """Whether weights that are one but for their packing are copied, as identical ones are.

    Args:
        options: of one module (`options_for`).
    """
    return options.method != "copy" and options.identical == "copy"


def is_twin(difference: float, source: float, target: float) -> bool:
    """Whether two weights, one of them packed, are one.

    Args:
        difference: squared Frobenius norm of the target's weight less the source's.
        source: of the source's.
        target: of the target's. Where one is not positive, or any is no number, nothing is one.
    """
    if not (source > 0.0 and target > 0.0 and math.isfinite(difference)):
        return False
    return (source + target - difference) / (2.0 * math.sqrt(source * target)) >= TWIN_COSINE


def weights_may_decide(options: MigrationOptions) -> bool:
    """Whether close weights pass the gate of these options without a look at their subspaces.

    Args:
        options: of one module (`options_for`).
    """
    rule = options.basis_rule
    return (
        options.gate == "auto"
        and options.method != "copy"
        and options.identical == "copy"
        and options.pair_rank == "max"
        and options.min_similarity <= CALIBRATED_SIMILARITY
        and rule.kind == "energy"
        and rule.value is not None
        and CALIBRATED_ENERGY[0] <= rule.value <= CALIBRATED_ENERGY[1]
    )


def is_close(difference: float, size: float) -> bool:
    """Whether two weights are close.

    Args:
        difference: squared Frobenius norm of the target's weight less the source's.
        size: of the source's. Where it is not positive, or either is no number, nothing is close.
    """
    if not (size > 0.0 and math.isfinite(difference)):
        return False
    return math.sqrt(difference / size) <= CLOSE_DRIFT
