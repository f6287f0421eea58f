"""Bases of a base model's weights, computed when a store does not have them."""

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from prolora_jax.basis import STORED_ENERGY, Basis, Rule, choose_rank, compute_basis
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.checkpoint import BaseModel

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@runtime_checkable
class BasisStore(Protocol):
    """Where bases are kept, by the fingerprint of their weight."""

    def get(self, fingerprint: str) -> Basis | None:
        """The basis of a weight, None when it is not there."""
        ...

    def put(self, fingerprint: str, basis: Basis) -> None:
        """Keep a basis; an older one of the same weight is replaced."""
        ...


class MemoryStore:
    """Keeps bases for the life of the object."""

    def __init__(self):
        self._bases: dict[str, Basis] = {}

    def get(self, fingerprint: str) -> Basis | None:
        """See `BasisStore`."""
        return self._bases.get(fingerprint)

    def put(self, fingerprint: str, basis: Basis) -> None:
        """See `BasisStore`."""
        self._bases[fingerprint] = basis


def load_or_compute(
    model: BaseModel, path: str, store: BasisStore, rule: Rule = ("energy", STORED_ENERGY)
) -> Basis:
    """The basis of one module, with at least the columns that `rule` asks for.

    Args:
        model: the base model.
        path: module path.
        store: asked first; gets what had to be computed.
        rule: how many columns are needed.

    Returns:
        The basis. Computing it costs about 10 * long * short^2 float64 operations.

    Raises:
        BaseModelError: when the weight has NaN or infinite numbers.
    """
    fingerprint = model.fingerprint(path)
    basis = store.get(fingerprint)
    if basis is None or basis.columns < choose_rank(basis.s, rule):
        basis = compute_basis(_finite_matrix(model, path), _at_least_stored(basis, rule))
        store.put(fingerprint, basis)
    return basis


def _finite_matrix(model: BaseModel, path: str) -> np.ndarray:
    matrix = model.matrix(path)
    if not np.isfinite(matrix).all():
        raise BaseModelError(
            f"{model.location}: {path}: found NaN or infinite numbers; expected a finite weight. "
            "Use another copy of this base model.",
            code=Refusal.NON_FINITE,
        )
    return matrix


def _at_least_stored(basis: Basis | None, rule: Rule) -> Rule:
    """Never ask for less than the default, so that the next rule is likely served, too."""
    if basis is not None:
        return "rank", choose_rank(basis.s, rule)
    if rule[0] == "energy" and (rule[1] or 0.0) < STORED_ENERGY:
        return "energy", STORED_ENERGY
    return rule


def compute_bases(
    model: BaseModel,
    paths: Iterable[str],
    store: BasisStore,
    rule: Rule = ("energy", STORED_ENERGY),
    progress: Progress | None = None,
) -> None:
    """Fill a store with the bases of some modules; what it already has is not done again.

    Args:
        model: the base model.
        paths: module paths.
        store: where the bases go.
        rule: how many columns are needed.
        progress: called after each module.
    """
    todo = list(paths)
    for done, path in enumerate(todo, start=1):
        load_or_compute(model, path, store, rule)
        if progress is not None:
            progress("bases", done, len(todo))
