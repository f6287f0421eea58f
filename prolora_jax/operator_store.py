"""Where the prepared operators of pairs of weights are kept, and how similar the weights are.

Both depend on the two weights and a few options, on no adapter: they are computed once per pair of
base models and serve every adapter after that.
"""

from hashlib import sha256
from typing import NamedTuple, Protocol, runtime_checkable

from prolora_jax.operators import Method, ModuleOperators

VERSION = 1
"""Part of every key: raise it when the numbers change, and what was stored before is ignored."""


class Comparison(NamedTuple):
    """How similar two weights are: both sides of method.md 2, ranks, and the gap at the cuts."""

    phi_left: float
    phi_right: float
    phi_hat_left: float | None
    phi_hat_right: float | None
    k_source: int
    k_target: int
    gap: float


@runtime_checkable
class OperatorStore(Protocol):
    """Keeps operators and comparisons by key."""

    def has(self, key: str) -> bool:
        """Whether operators are there."""
        ...

    def get(self, key: str) -> ModuleOperators | None:
        """Operators; None when they are not there."""
        ...

    def put(self, key: str, operators: ModuleOperators) -> None:
        """Keep operators."""
        ...

    def comparison(self, key: str) -> Comparison | None:
        """A comparison; None when it is not there."""
        ...

    def put_comparison(self, key: str, comparison: Comparison) -> None:
        """Keep a comparison."""
        ...


class MemoryOperators:
    """Keeps operators for the life of the object."""

    def __init__(self):
        self._operators: dict[str, ModuleOperators] = {}
        self._comparisons: dict[str, Comparison] = {}

    def has(self, key: str) -> bool:
        """See `OperatorStore`."""
        return key in self._operators

    def get(self, key: str) -> ModuleOperators | None:
        """See `OperatorStore`."""
        return self._operators.get(key)

    def put(self, key: str, operators: ModuleOperators) -> None:
        """See `OperatorStore`."""
        self._operators[key] = operators

    def comparison(self, key: str) -> Comparison | None:
        """See `OperatorStore`."""
        return self._comparisons.get(key)

    def put_comparison(self, key: str, comparison: Comparison) -> None:
        """See `OperatorStore`."""
        self._comparisons[key] = comparison


def comparison_key(source: str, target: str, basis_rank: str, pair_rank: str) -> str:
    """Key of a comparison, from the fingerprints of two weights and the rule for their ranks."""
    return _key("comparison", source, target, basis_rank, pair_rank)


def operator_key(
    source: str, target: str, method: Method, k_source: int, k_target: int, min_cos: float
) -> str:
    """Key of operators, from the fingerprints of two weights and what else they depend on."""
    limit = min_cos if method == "rotation" else None
    return _key("operators", source, target, method, k_source, k_target, limit)


def _key(*facts: object) -> str:
    return sha256(" ".join(map(str, (VERSION, *facts))).encode()).hexdigest()[:32]
