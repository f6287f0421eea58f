"""What is computed once per pair of weights, from their bases in a store: by worker processes, too.

NumPy only: a worker process does not load JAX.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from prolora_jax.bases import POOL_WORTH, BasisStore, Progress
from prolora_jax.basis import Basis, cut_gap
from prolora_jax.io.basis_store import FolderStore
from prolora_jax.operator_store import Comparison
from prolora_jax.operators import Method, ModuleOperators, Span, prepare_side
from prolora_jax.similarity import side_similarity
from prolora_jax.workers import run_in_processes


class WeightPair(NamedTuple):
    """Two weights by their fingerprints, and how many singular vectors of each are retained."""

    source: str
    target: str
    k_source: int
    k_target: int
    shape: tuple[int, int]


def compare_all(
    store: BasisStore,
    todo: Mapping[str, WeightPair],
    workers: int,
    progress: Progress | None = None,
) -> dict[str, Comparison]:
    """Compute comparisons, by key; each is stored as soon as it is there."""
    operations = sum(2.0 * w.k_source * w.k_target * sum(w.shape) for w in todo.values())
    tasks = [_Comparing(_folder(store), *item) for item in todo.items()]
    if _worth(store, operations, workers):
        results = ((t.key, c) for t, c in run_in_processes(_compare_stored, tasks, workers))
    else:
        results = ((key, compare(store, weights)) for key, weights in todo.items())
    found = {}
    for done, (key, comparison) in enumerate(results, start=1):
        store.operators.put_comparison(key, comparison)
        found[key] = comparison
        if progress is not None:
            progress("similarity", done, len(todo))
    return found


def prepare_all(
    store: BasisStore,
    todo: Mapping[str, WeightPair],
    method: Method,
    min_cos: float,
    workers: int,
    progress: Progress | None = None,
) -> None:
    """Fill the store with operators, by key; each is stored as soon as it is there."""
    operations = sum(2.0 * w.k_source * sum(d * d for d in w.shape) for w in todo.values())

    def here() -> Iterator[None]:
        for key, weights in todo.items():
            store.operators.put(key, prepare(store, weights, method, min_cos))
            yield

    tasks = [_Preparing(_folder(store), *item, method, min_cos) for item in todo.items()]
    pooled = _worth(store, operations, workers)
    results = run_in_processes(_prepare_stored, tasks, workers) if pooled else here()
    for done, _ in enumerate(results, start=1):
        if progress is not None:
            progress("operators", done, len(todo))


def _worth(store: BasisStore, operations: float, workers: int) -> bool:
    return isinstance(store, FolderStore) and workers > 1 and operations > POOL_WORTH


def _folder(store: BasisStore) -> Path:
    return store.folder if isinstance(store, FolderStore) else Path()


class _Comparing(NamedTuple):
    folder: Path
    key: str
    weights: WeightPair


def _compare_stored(task: _Comparing) -> Comparison:
    return compare(FolderStore(task.folder), task.weights)


class _Preparing(NamedTuple):
    folder: Path
    key: str
    weights: WeightPair
    method: Method
    min_cos: float


def _prepare_stored(task: _Preparing) -> None:
    # Written here: sending tens of megabytes to the parent costs more than preparing them.
    store = FolderStore(task.folder)
    store.operators.put(task.key, prepare(store, task.weights, task.method, task.min_cos))


def compare(store: BasisStore, weights: WeightPair) -> Comparison:
    """Similarity of two weights on both sides, and the smaller of the gaps at their cuts."""
    source, target = _bases(store, weights)
    k_s, k_t = weights.k_source, weights.k_target
    left = side_similarity(source.u[:, :k_s], target.u[:, :k_t])
    right = side_similarity(source.v[:, :k_s], target.v[:, :k_t])
    shape = target.u.shape[0], target.v.shape[0]
    gap = min(cut_gap(source.s, k_s, shape), cut_gap(target.s, k_t, shape))
    return Comparison(left.phi, right.phi, left.corrected, right.corrected, k_s, k_t, gap)


def prepare(
    store: BasisStore, weights: WeightPair, method: Method, min_cos: float
) -> ModuleOperators:
    """Operators of an arm for two weights."""
    source, target = _bases(store, weights)
    k_s, k_t = weights.k_source, weights.k_target
    left, right = (
        prepare_side(method, _span(a, k_s), _span(b, k_t), min_cos)
        for a, b in ((source.u, target.u), (source.v, target.v))
    )
    return ModuleOperators(left, right)


def _bases(store: BasisStore, weights: WeightPair) -> tuple[Basis, Basis]:
    source, target = store.get(weights.source), store.get(weights.target)
    if source is None or target is None:
        raise AssertionError(f"{weights}: bases are computed before they are compared")
    return source, target


def _span(vectors, k: int) -> Span:
    """The leading k columns; the others where all of the space's are there."""
    dim, columns = vectors.shape
    return Span(vectors[:, :k], vectors[:, k:] if columns == dim else None)
