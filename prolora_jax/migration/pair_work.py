"""What is computed once per pair of weights, from a store's subspaces: by worker processes, too.

NumPy only: a worker process does not load JAX.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from prolora_jax.engines.processes import run_in_processes
from prolora_jax.engines.progress import Progress
from prolora_jax.io.stores.basis_store import FolderStore, store_at
from prolora_jax.io.stores.store_address import StoreAddress
from prolora_jax.matching.pairs import ModulePair
from prolora_jax.method.basis import Basis, cut_angle
from prolora_jax.method.operators import ROTATION_MIN_COS, ModuleOperators, Span, prepare_side
from prolora_jax.method.prepared import Comparison, ComparisonKey, OperatorKey, digest
from prolora_jax.method.similarity import side_similarity
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Measure, ModuleSimilarity
from prolora_jax.subspaces.compute import POOL_WORTH
from prolora_jax.subspaces.store import BasisStore
from prolora_jax.subspaces.turns import turns

CLUSTERED_ANGLE = 0.1
"""A cut that rounding turns by more (radians) is flagged `clustered-cut` (docs/method.md 2)."""

LIKELY_STORED, LIKELY_RANK = 0.75, 0.5
"""Columns of the long side and retained rank, over the short side, of weights as trained nets have
them: `benchmarks/made_models.py`."""


PairKey = TypeVar("PairKey", ComparisonKey, OperatorKey)


class WeightPair(NamedTuple):
    """Two weights by their fingerprints, and how many singular vectors of each are retained."""

    source: str
    target: str
    k_source: int
    k_target: int
    shape: tuple[int, int]


def compared_before(
    store: BasisStore, keys: Iterable[ComparisonKey]
) -> dict[ComparisonKey, Comparison]:
    """Comparisons that the store has."""
    stored = {key: store.operators.comparison(key) for key in keys}
    return {key: comparison for key, comparison in stored.items() if comparison is not None}


def to_prepare(
    store: BasisStore, keys: Mapping[OperatorKey, ModulePair]
) -> dict[OperatorKey, ModulePair]:
    """Those of whose operators the store has none."""
    return {key: pair for key, pair in keys.items() if not store.operators.has(key)}


def compare_all(
    store: BasisStore,
    todo: Mapping[ComparisonKey, WeightPair],
    workers: int,
    progress: Progress | None = None,
) -> dict[ComparisonKey, Comparison]:
    """Compute comparisons; each is stored as soon as it is there."""
    operations = sum(2.0 * w.k_source * w.k_target * sum(w.shape) for w in todo.values())
    if isinstance(store, FolderStore) and _worth(operations, workers):
        tasks = [_Comparing(store.address, *item) for item in todo.items()]
        results = ((t.key, c) for t, c in run_in_processes(_compare_stored, tasks, workers))
    else:
        results = ((key, compare(store, weights)) for key, weights in todo.items())
    found = {}
    for done, (key, comparison) in enumerate(results, start=1):
        store.operators.put_comparison(key, comparison)
        # Another host's, where one was first.
        found[key] = store.operators.comparison(key) or comparison
        if progress is not None:
            progress("similarity", done, len(todo))
    return found


def prepare_all(
    store: BasisStore,
    todo: Mapping[OperatorKey, tuple[int, int]],
    workers: int,
    progress: Progress | None = None,
) -> None:
    """Fill the store with operators, by the shape of their weights; each as soon as it is there."""
    operations = sum(2.0 * key.k_source * sum(d * d for d in todo[key]) for key in todo)

    def here() -> Iterator[None]:
        for key in todo:
            store.operators.put(key, prepare(store, key))
            yield

    if isinstance(store, FolderStore) and _worth(operations, workers):
        tasks = [_Preparing(store.address, key) for key in todo]
        results = run_in_processes(_prepare_stored, tasks, workers)
    else:
        results = here()
    for done, _ in enumerate(results, start=1):
        if progress is not None:
            progress("operators", done, len(todo))


def bytes_of_subspaces(shape: tuple[int, int]) -> int:
    """About how many bytes the subspaces of one weight have in a store."""
    short, long = sorted(shape)
    return int(4 * (short * short + LIKELY_STORED * short * long))


def bytes_of_operators(shape: tuple[int, int]) -> int:
    """About how many bytes the operators of two weights have in a store, by their cheapest form."""
    short = min(shape)
    return int(4 * sum(d * short * LIKELY_RANK + d * min(d, 2 * short) for d in shape))


GROUP = 32
"""Pairs that are computed at a time by worker processes where other hosts work at the same."""


def in_groups(
    store: BasisStore,
    asked: Mapping[PairKey, tuple[int, int]],
    missing: Mapping[PairKey, ModulePair],
    workers: int,
) -> Iterator[dict[PairKey, ModulePair]]:
    """Pairs of weights in the order in which this host takes them (see `turns`).

    Args:
        store: all at once, if no other host works for it.
        asked: shapes by keys; the same on all hosts that begin together.
        missing: those that the store had not, as modules.
        workers: processes that a group is for.

    Yields:
        The next ones; what others have done by then is to be looked for.
    """
    if store.share is None:
        yield dict(missing)
        return
    work = {key: float(math.prod(shape) * min(shape)) for key, shape in asked.items()}
    for part in turns(work, store.share, {key: digest(key) for key in asked}):
        left, step = [key for key in part if key in missing], 1 if workers == 1 else GROUP
        for first in range(0, len(left), step):
            yield {key: missing[key] for key in left[first : first + step]}


class OperatorsAhead:
    """Operators that are prepared in threads shortly before their turn, and kept by nobody.

    Args:
        store: of the subspaces, which are there.
        keys: in the order in which they will be taken.
        workers: threads; so many are held, and one more for each that is in work.
    """

    def __init__(self, store: BasisStore, keys: Iterable[OperatorKey], workers: int):
        self._store, self._keys = store, iter(list(keys))
        self._pool = ThreadPoolExecutor(workers, "operators")
        self._made: dict[OperatorKey, Future[ModuleOperators]] = {}
        for _ in range(workers):
            self._start_next()

    def take(self, key: OperatorKey) -> ModuleOperators:
        """Operators; out of turn they are prepared at once."""
        future = self._made.pop(key, None)
        if future is None:
            return prepare(self._store, key)
        self._start_next()
        return future.result()

    def _start_next(self) -> None:
        key = next(self._keys, None)
        if key is None:
            self._pool.shutdown(wait=False)
        else:
            self._made[key] = self._pool.submit(prepare, self._store, key)


def _worth(operations: float, workers: int) -> bool:
    return workers > 1 and operations > POOL_WORTH


class _Comparing(NamedTuple):
    place: StoreAddress
    key: ComparisonKey
    weights: WeightPair


def _compare_stored(task: _Comparing) -> Comparison:
    return compare(store_at(task.place), task.weights)


class _Preparing(NamedTuple):
    place: StoreAddress
    key: OperatorKey


def _prepare_stored(task: _Preparing) -> None:
    # Written here: sending tens of megabytes to the parent costs more than preparing them.
    store = store_at(task.place)
    if not store.operators.has(task.key):  # another host's
        store.operators.put(task.key, prepare(store, task.key))


def compare(store: BasisStore, weights: WeightPair) -> Comparison:
    """Similarity of two weights on both sides, and the larger of the angles at their cuts."""
    source, target = _bases(store, weights.source, weights.target)
    k_s, k_t = weights.k_source, weights.k_target
    left = side_similarity(source.u[:, :k_s], target.u[:, :k_t])
    right = side_similarity(source.v[:, :k_s], target.v[:, :k_t])
    shape = target.u.shape[0], target.v.shape[0]
    angle = max(cut_angle(source.s, k_s, shape), cut_angle(target.s, k_t, shape))
    return Comparison(left.phi, right.phi, left.corrected, right.corrected, k_s, k_t, angle)


def prepare(store: BasisStore, key: OperatorKey) -> ModuleOperators:
    """Operators of a method for two weights."""
    source, target = _bases(store, key.source, key.target)
    min_cos = ROTATION_MIN_COS if key.min_cos is None else key.min_cos
    left, right = (
        prepare_side(key.method, _span(a, key.k_source), _span(b, key.k_target), min_cos)
        for a, b in ((source.u, target.u), (source.v, target.v))
    )
    return ModuleOperators(left, right)


def _bases(store: BasisStore, source: str, target: str) -> tuple[Basis, Basis]:
    found = store.get(source), store.get(target)
    if found[0] is None or found[1] is None:
        raise AssertionError(f"{source}, {target}: subspaces are computed before they are compared")
    return found[0], found[1]


def _span(vectors, k: int) -> Span:
    """The leading k columns; the others where all of the space's are there."""
    dim, columns = vectors.shape
    return Span(vectors[:, :k], vectors[:, k:] if columns == dim else None)


def by_options(
    pairs: Iterable[ModulePair], options: MigrationOptions
) -> Iterable[tuple[MigrationOptions, list[ModulePair]]]:
    """Pairs by the options that hold for them."""
    groups: dict[int, tuple[MigrationOptions, list[ModulePair]]] = {}
    for pair in pairs:
        own = options.options_for(pair.target)
        groups.setdefault(id(own), (own, []))[1].append(pair)
    return groups.values()


def measure_of(compared: Comparison) -> Measure:
    """What plans and reports are told of a comparison."""
    similarity = ModuleSimilarity(*compared[:6])
    flags = ("clustered-cut",) if compared.cut_angle > CLUSTERED_ANGLE else ()
    return Measure(similarity=similarity, flags=flags)


def mean_similarity(compared: Comparison) -> float:
    """Mean of both sides, corrected for chance where that says something."""
    left, right = compared.phi_hat_left, compared.phi_hat_right
    left = compared.phi_left if left is None else left
    right = compared.phi_right if right is None else right
    return (left + right) / 2
