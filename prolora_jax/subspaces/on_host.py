"""Subspaces computed on the host: one after the other, or by worker processes. Loads no JAX."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from prolora_jax.engines.processes import run_in_processes
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.stores.basis_store import store_at
from prolora_jax.io.stores.store_address import StoreAddress
from prolora_jax.method.basis import Basis, BasisRule, compute_basis

Todo = dict[str, tuple[str, BasisRule]]
"""Module path and rank rule of each basis to compute, by the fingerprint of its weight."""


def finite_matrix(model: BaseModel, path: str, rows: tuple[int, int] | None = None) -> np.ndarray:
    """The weight of one module as a float32 matrix `(out, in)`.

    Args:
        model: the base model.
        path: module path.
        rows: the first one and the one behind the last; all when None.

    Raises:
        BaseModelError: when it has NaN or infinite numbers.
    """
    matrix = model.matrix(path, rows)
    if not np.isfinite(matrix).all():
        raise BaseModelError(
            f"{model.location}: {path}: found NaN or infinite numbers; expected a finite weight. "
            "Use another copy of this base model.",
            code=Refusal.NON_FINITE,
        )
    return matrix


def compute_one(model: BaseModel, path: str, rule: BasisRule) -> Basis:
    """The basis of one module, from its weight.

    Raises:
        BaseModelError: when the weight has NaN or infinite numbers.
    """
    return compute_basis(finite_matrix(model, path), rule)


class Others(NamedTuple):
    """Other hosts that compute for the same store.

    Attributes:
        store: where it lies; None: there is nobody.
        absent: fingerprints of what it had not when it was looked at.
    """

    store: StoreAddress | None = None
    absent: frozenset[str] = frozenset()

    def who_have(self, fingerprint: str) -> StoreAddress | None:
        """The store, if another host may have put a basis there meanwhile."""
        return self.store if fingerprint in self.absent else None

    def have(self, fingerprint: str) -> bool:
        """Whether another host has put a basis there meanwhile; one request."""
        return _is_there(self.who_have(fingerprint), fingerprint)


NOBODY = Others()


def in_turn(model: BaseModel, todo: Todo, others: Others = NOBODY) -> Iterator[tuple[str, Basis]]:
    """Each weight's basis by its fingerprint, in the given order.

    Yields:
        Fingerprint and basis, but for those that others have.
    """
    for fingerprint, (path, rule) in todo.items():
        if not others.have(fingerprint):
            yield fingerprint, compute_one(model, path, rule)


def in_processes(
    model: BaseModel, todo: Todo, workers: int, others: Others = NOBODY
) -> Iterator[tuple[str, Basis]]:
    """Each weight's basis by its fingerprint, as `workers` processes have them ready.

    They are begun in the given order: with the largest first the last ones to finish are small.

    Yields:
        Fingerprint and basis, but for those that others have.
    """
    tasks = [
        _Task(fingerprint, model.location, *item, others.who_have(fingerprint))
        for fingerprint, item in todo.items()
    ]
    for task, basis in run_in_processes(_compute_in_worker, tasks, workers):
        if basis is not None:
            yield task.fingerprint, basis


def operations(model: BaseModel, path: str) -> float:
    """About how many floating-point operations the basis of one module takes."""
    short, long = sorted(model.spec.modules[path].matrix_shape)
    return 10.0 * long * short**2


def _is_there(address: StoreAddress | None, fingerprint: str) -> bool:
    return address is not None and store_at(address).has(fingerprint)


@cache
def _model_in_worker(location: str) -> BaseModel:
    return load_base_model(location)


class _Task(NamedTuple):
    fingerprint: str
    location: str
    path: str
    rule: BasisRule
    others: StoreAddress | None


def _compute_in_worker(task: _Task) -> Basis | None:
    if _is_there(task.others, task.fingerprint):
        return None
    return compute_one(_model_in_worker(task.location), task.path, task.rule)
