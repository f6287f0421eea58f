"""Where the singular vectors of weights are kept, by the fingerprint of their weight."""

from typing import Protocol, runtime_checkable

from prolora_jax.io.stores.known_weights import KnownWeights
from prolora_jax.io.stores.weight_tables import WeightTables
from prolora_jax.method.basis import Basis, Extent
from prolora_jax.method.prepared import MemoryOperators, OperatorStore
from prolora_jax.subspaces.turns import Share


@runtime_checkable
class BasisStore(Protocol):
    """Where subspaces are kept, by the fingerprint of their weight; `operators` of pairs beside."""

    @property
    def operators(self) -> OperatorStore:
        """Where what is computed from pairs of weights is kept."""
        ...

    @property
    def tables(self) -> WeightTables | None:
        """Where dot products of weights are kept; None: nowhere, they are computed again."""
        ...

    @property
    def known(self) -> KnownWeights | None:
        """Where fingerprints of unchanged checkpoints are kept; None: nowhere, all is read."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether what is computed stays; else operators are not to be put here."""
        ...

    @property
    def share(self) -> Share | None:
        """The part of what many workers compute that this one does first; None: it is alone."""
        ...

    def expect(self, size: int) -> None:
        """Hear how many bytes are about to be put here."""
        ...

    def get(self, fingerprint: str) -> Basis | None:
        """The basis of a weight, None when it is not there."""
        ...

    def has(self, fingerprint: str) -> bool:
        """Whether a basis is there, by its name; a damaged one is found when it is opened."""
        ...

    def extent(self, fingerprint: str) -> Extent | None:
        """What the basis of a weight can serve, without its vectors; None when it is not there."""
        ...

    def put(self, fingerprint: str, basis: Basis) -> None:
        """Keep a basis; an older one of the same weight is replaced, but for others' that serve."""
        ...


class MemoryStore:
    """Keeps subspaces for the life of the object."""

    tables = None
    known = None
    keeps = True
    share = None

    def __init__(self):
        self._bases: dict[str, Basis] = {}
        self._operators = MemoryOperators()

    @property
    def operators(self) -> OperatorStore:
        """See `BasisStore`."""
        return self._operators

    def expect(self, size: int) -> None:
        """See `BasisStore`; memory has nothing to say."""

    def get(self, fingerprint: str) -> Basis | None:
        """See `BasisStore`."""
        return self._bases.get(fingerprint)

    def has(self, fingerprint: str) -> bool:
        """See `BasisStore`."""
        return fingerprint in self._bases

    def extent(self, fingerprint: str) -> Extent | None:
        """See `BasisStore`."""
        basis = self._bases.get(fingerprint)
        return None if basis is None else basis.extent

    def put(self, fingerprint: str, basis: Basis) -> None:
        """See `BasisStore`."""
        self._bases[fingerprint] = basis
