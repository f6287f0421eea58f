"""Which modules are recomputed where all of them would take minutes: drawn, so that nobody knows.

Whoever makes a file may know this program. So the draw hangs on a word of the check's own, drawn
anew each time, and on the file: no module can be chosen that is not looked at. The word is told,
and with it the same modules are drawn again.
"""

import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from prolora_jax.architectures.spec import BaseModelSpec

WORK = 2e10
"""Operations of decompositions, as `work` counts them, that a check takes unasked: 12 s on one
core, and as long again for all else at the size of SDXL. Files with less are checked whole."""

LEAST = 3
"""Modules that are recomputed, however large."""


@dataclass(frozen=True)
class Sample:
    """How much of a file was recomputed.

    Attributes:
        recomputed: modules whose weights were decomposed and whose update was compared.
        of: modules that the method projects.
        seed: word that decides, with the file, which modules these are; None where all are.
    """

    recomputed: int
    of: int
    seed: str | None = None

    @property
    def words(self) -> str:
        """In a sentence without its end."""
        return f"{self.recomputed} of {self.of} projected modules recomputed"

    def with_more(self, other: "Sample") -> "Sample":
        """Both together."""
        return Sample(self.recomputed + other.recomputed, self.of + other.of, self.seed)


def work(spec: BaseModelSpec, path: str) -> float:
    """Operations of the decomposition of two weights, up to a factor that no shape changes."""
    short, long = sorted(spec.modules[path].matrix_shape)
    return 2.0 * long * short**2


def draw(
    costs: Mapping[str, float], needed: frozenset[str], fingerprint: str, seed: str
) -> set[str]:
    """Draw modules until their work is used up.

    Args:
        costs: work of each module that the method projects.
        needed: modules that are recomputed in any case.
        fingerprint: of the file.
        seed: from `new_seed`, or that of an earlier check.

    Returns:
        The modules to recompute; all when their work is no more than `WORK`.
    """
    if sum(costs.values()) <= WORK:
        return {*costs}
    order = sorted(costs)
    random.Random(f"{seed} {fingerprint}").shuffle(order)
    chosen, used = set[str](), 0.0
    for path in order:
        used += costs[path]
        # It ends with the first that is too much: to go on would prefer small modules.
        if used > WORK and len(chosen) >= LEAST:
            break
        chosen.add(path)
    return chosen | needed


def new_seed() -> str:
    """A word that nobody could know."""
    return secrets.token_hex(8)
