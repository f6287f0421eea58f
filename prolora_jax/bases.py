"""Bases of a base model's weights, computed when a store does not have them."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from typing import Protocol, runtime_checkable

import numpy as np

from prolora_jax.basis import STORED_ENERGY, Basis, Extent, Rule, choose_rank, compute_basis
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.checkpoint import BaseModel, load_base_model
from prolora_jax.operator_store import MemoryOperators, OperatorStore

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""


@runtime_checkable
class BasisStore(Protocol):
    """Where bases are kept, by the fingerprint of their weight; `operators` of pairs beside."""

    @property
    def operators(self) -> OperatorStore:
        """Where what is computed from pairs of bases is kept."""
        ...

    def get(self, fingerprint: str) -> Basis | None:
        """The basis of a weight, None when it is not there."""
        ...

    def extent(self, fingerprint: str) -> Extent | None:
        """What the basis of a weight can serve, without its vectors; None when it is not there."""
        ...

    def put(self, fingerprint: str, basis: Basis) -> None:
        """Keep a basis; an older one of the same weight is replaced."""
        ...


class MemoryStore:
    """Keeps bases for the life of the object."""

    def __init__(self):
        self._bases: dict[str, Basis] = {}
        self._operators = MemoryOperators()

    @property
    def operators(self) -> OperatorStore:
        """See `BasisStore`."""
        return self._operators

    def get(self, fingerprint: str) -> Basis | None:
        """See `BasisStore`."""
        return self._bases.get(fingerprint)

    def extent(self, fingerprint: str) -> Extent | None:
        """See `BasisStore`."""
        basis = self._bases.get(fingerprint)
        return None if basis is None else basis.extent

    def put(self, fingerprint: str, basis: Basis) -> None:
        """See `BasisStore`."""
        self._bases[fingerprint] = basis


POOL_WORTH = 2e10
"""Floating-point operations from which starting worker processes pays (about 2 s of one core)."""


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
    if basis is None or not _serves(basis.extent, rule):
        basis = compute_one(model, path, _wider(None if basis is None else basis.extent, rule))
        store.put(fingerprint, basis)
    return basis


def compute_one(model: BaseModel, path: str, rule: Rule) -> Basis:
    """The basis of one module, from its weight.

    Raises:
        BaseModelError: when the weight has NaN or infinite numbers.
    """
    matrix = model.matrix(path)
    if not np.isfinite(matrix).all():
        raise BaseModelError(
            f"{model.location}: {path}: found NaN or infinite numbers; expected a finite weight. "
            "Use another copy of this base model.",
            code=Refusal.NON_FINITE,
        )
    return compute_basis(matrix, rule)


def compute_bases(
    model: BaseModel,
    paths: Iterable[str],
    store: BasisStore,
    rule: Rule = ("energy", STORED_ENERGY),
    progress: Progress | None = None,
    workers: int = 1,
) -> int:
    """Fill a store with the bases of some modules; what it already has is not done again.

    Each basis goes into the store as soon as it is there: a run that is killed and started again
    goes on where it was.

    Args:
        model: the base model.
        paths: module paths.
        store: where the bases go.
        rule: how many columns are needed.
        progress: called with ("bases", done, total) after each basis that is computed.
        workers: processes, each with one BLAS thread and its own view of the checkpoint; they
            are started only when there is enough to do. A script that asks for more than one
            needs the usual `if __name__ == "__main__":`.

    Returns:
        How many bases were computed.

    Raises:
        BaseModelError: when a weight has NaN or infinite numbers.
    """
    todo: dict[str, tuple[str, Rule]] = {}  # by fingerprint: equal weights are done once
    for path in paths:
        fingerprint = model.fingerprint(path)
        extent = store.extent(fingerprint)
        if not _serves(extent, rule):
            todo[fingerprint] = path, _wider(extent, rule)
    computed = _in_processes if workers > 1 and _work(model, todo) > POOL_WORTH else _in_turn
    for done, (fingerprint, basis) in enumerate(computed(model, todo, workers), start=1):
        store.put(fingerprint, basis)
        if progress is not None:
            progress("bases", done, len(todo))
    return len(todo)


Todo = dict[str, tuple[str, Rule]]


def _in_turn(model: BaseModel, todo: Todo, workers: int) -> Iterator[tuple[str, Basis]]:
    for fingerprint, (path, rule) in todo.items():
        yield fingerprint, compute_one(model, path, rule)


def _in_processes(model: BaseModel, todo: Todo, workers: int) -> Iterator[tuple[str, Basis]]:
    # Largest first: the last ones to finish are then small.
    order = sorted(todo.items(), key=lambda item: -_operations(model, item[1][0]))
    with _one_thread_each(), ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = {
            pool.submit(_compute_in_worker, model.location, path, rule): fingerprint
            for fingerprint, (path, rule) in order
        }
        try:
            for future in as_completed(waiting):
                yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@cache
def _model_in_worker(location: str) -> BaseModel:
    return load_base_model(location)


def _compute_in_worker(location: str, path: str, rule: Rule) -> Basis:
    return compute_one(_model_in_worker(location), path, rule)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Environment of child processes: BLAS threads of several processes would fight for cores."""
    names = [f"{library}_NUM_THREADS" for library in ("OPENBLAS", "OMP", "MKL")]
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _operations(model: BaseModel, path: str) -> float:
    short, long = sorted(model.spec.modules[path].matrix_shape)
    return 10.0 * long * short**2


def _work(model: BaseModel, todo: Todo) -> float:
    return sum(_operations(model, path) for path, _ in todo.values())


def _serves(extent: Extent | None, rule: Rule) -> bool:
    return extent is not None and extent.columns >= choose_rank(extent.s, rule)


def _wider(extent: Extent | None, rule: Rule) -> Rule:
    """Never ask for less than the default, so that the next rule is likely served, too."""
    if extent is not None:
        return "rank", choose_rank(extent.s, rule)
    if rule[0] == "energy" and (rule[1] or 0.0) < STORED_ENERGY:
        return "energy", STORED_ENERGY
    return rule
