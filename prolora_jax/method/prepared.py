"""Where the prepared operators of pairs of weights are kept, and how similar the weights are.

Both depend on the two weights and a few options, on no adapter: they are computed once per pair of
base models and serve every adapter after that.
"""

from hashlib import sha256
from typing import NamedTuple, Protocol, runtime_checkable

from prolora_jax.method.operators import Method, ModuleOperators


class Comparison(NamedTuple):
    """How similar two weights are: both sides of docs/method.md 3, ranks, and how sure the cuts.

    Attributes:
        phi_left: similarity of the out-side spans.
        phi_right: of the in-side spans.
        phi_hat_left: corrected for chance; None where that says nothing.
        phi_hat_right: the same of the in side.
        k_source: retained rank of the source.
        k_target: of the target.
        cut_angle: `basis.cut_angle`, the larger of both weights'.
    """

    phi_left: float
    phi_right: float
    phi_hat_left: float | None
    phi_hat_right: float | None
    k_source: int
    k_target: int
    cut_angle: float


class ComparisonKey(NamedTuple):
    """What a comparison depends on: the weights' fingerprints, and the rule for their ranks."""

    source: str
    target: str
    basis_rank: str
    pair_rank: str


class OperatorKey(NamedTuple):
    """What operators depend on: the weights' fingerprints, the method and the ranks.

    Attributes:
        min_cos: of `rotation`; None for every other method, so that it does not tell them apart.
    """

    source: str
    target: str
    method: Method
    k_source: int
    k_target: int
    min_cos: float | None

    @staticmethod
    def of(
        weights: tuple[str, str], method: Method, ranks: tuple[int, int], min_cos: float
    ) -> "OperatorKey":
        """The key for (source, target) weights and ranks."""
        return OperatorKey(*weights, method, *ranks, min_cos if method == "rotation" else None)


def digest(key: ComparisonKey | OperatorKey) -> str:
    """32 hex digits for a key: a file name."""
    return sha256(" ".join(map(str, (type(key).__name__, *key))).encode()).hexdigest()[:32]


@runtime_checkable
class OperatorStore(Protocol):
    """Keeps operators and comparisons by key."""

    def has(self, key: OperatorKey) -> bool:
        """Whether operators are there."""
        ...

    def get(self, key: OperatorKey) -> ModuleOperators | None:
        """Operators, read-only; None when they are not there."""
        ...

    def put(self, key: OperatorKey, operators: ModuleOperators) -> None:
        """Keep operators."""
        ...

    def comparison(self, key: ComparisonKey) -> Comparison | None:
        """A comparison; None when it is not there."""
        ...

    def put_comparison(self, key: ComparisonKey, comparison: Comparison) -> None:
        """Keep a comparison."""
        ...


class MemoryOperators:
    """Keeps operators for the life of the object."""

    def __init__(self):
        self._operators: dict[OperatorKey, ModuleOperators] = {}
        self._comparisons: dict[ComparisonKey, Comparison] = {}

    def has(self, key: OperatorKey) -> bool:
        """See `OperatorStore`."""
        return key in self._operators

    def get(self, key: OperatorKey) -> ModuleOperators | None:
        """See `OperatorStore`."""
        return self._operators.get(key)

    def put(self, key: OperatorKey, operators: ModuleOperators) -> None:
        """See `OperatorStore`."""
        self._operators[key] = operators

    def comparison(self, key: ComparisonKey) -> Comparison | None:
        """See `OperatorStore`."""
        return self._comparisons.get(key)

    def put_comparison(self, key: ComparisonKey, comparison: Comparison) -> None:
        """See `OperatorStore`."""
        self._comparisons[key] = comparison
