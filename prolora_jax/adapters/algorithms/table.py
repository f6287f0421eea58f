"""The adapter algorithms by name, and the ends of keys that tell their tensors."""

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.adalora import ADALORA
from prolora_jax.adapters.algorithms.algorithm import Algorithm
from prolora_jax.adapters.algorithms.boft import BOFT
from prolora_jax.adapters.algorithms.dora import DORA
from prolora_jax.adapters.algorithms.full import FULL
from prolora_jax.adapters.algorithms.glora import GLORA
from prolora_jax.adapters.algorithms.ia3 import IA3
from prolora_jax.adapters.algorithms.loha import LOHA
from prolora_jax.adapters.algorithms.lokr import LOKR
from prolora_jax.adapters.algorithms.oft import OFT
from prolora_jax.adapters.algorithms.peft_boft import PEFT_BOFT
from prolora_jax.adapters.algorithms.peft_oft import PEFT_OFT
from prolora_jax.adapters.algorithms.tucker import TUCKER
from prolora_jax.adapters.algorithms.vera import VERA

_ALL = (TUCKER, LOHA, LOKR, FULL, DORA)
_ALL += (IA3, OFT, BOFT, PEFT_OFT, PEFT_BOFT, GLORA, ADALORA, VERA)
PLAIN_PARTS = frozenset({"down", "up", "alpha"})
"""The parts of plain LoRA."""

ALGORITHMS = {algorithm.name: algorithm for algorithm in _ALL}
PART_BY_END = {
    end: part
    for algorithm in _ALL
    for end, part in algorithm.ends.items()
    if end.startswith(".")  # the others are plain LoRA's own factors, or told in another way
}
"""Part names by the end of a key."""


WRITTEN = frozenset({LOHA.name, LOKR.name})
"""Those whose modules can be written as they are: no weight has a say in their update."""


def algorithm_reading(names: frozenset[str]) -> Algorithm | None:
    """The algorithm whose module has tensors of these parts; None where they are of none."""
    return next((a for a in _ALL if a.reads(names)), None)


def nearest_algorithm(names: frozenset[str]) -> Algorithm | None:
    """The algorithm that most of these parts belong to: something is missing, or too much."""
    found = max(_ALL, key=lambda a: len(a.parts & names))
    return found if found.parts & names else None


def algorithm_for(module: StructuredModule) -> Algorithm:
    """The algorithm of a module."""
    return ALGORITHMS[module.algorithm]
