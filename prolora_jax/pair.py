"""A source and a target base model together: matching by weights, similarity, operators."""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from prolora_jax.architectures.correspondence import CORRESPONDENCES, source_paths
from prolora_jax.bases import BasisStore, MemoryStore, Progress, compute_bases, load_or_compute
from prolora_jax.basis import Extent, Rule, choose_rank, common_rank
from prolora_jax.evidence import cosines, similarities
from prolora_jax.io.checkpoint import BaseModel
from prolora_jax.matching import Matching, match_modules
from prolora_jax.operator_store import Comparison, comparison_key, operator_key
from prolora_jax.operators import Method, ModuleOperators, effective_method
from prolora_jax.options import Match, MigrationOptions, basis_rule
from prolora_jax.pair_work import WeightPair, compare_all, prepare_all
from prolora_jax.plan import Measure, ModuleSimilarity

CLUSTERED_GAP = 1e-3
"""A cut with a smaller relative gap is flagged: the span depends on rounding (method.md 1)."""

OPTIONS = MigrationOptions()
# A correspondence that was only guessed from shapes says nothing about blocks of equal shape.
PUBLISHED = {pair: known for pair, known in CORRESPONDENCES.items() if known.published}


class BasePair:
    """What can be known of two base models without any adapter.

    Args:
        source: base model that adapters were trained on.
        target: base model that they move to.
        store: where bases are found and kept; memory when None.
        workers: processes for bases that have to be computed (see `compute_bases`).
    """

    def __init__(
        self,
        source: BaseModel,
        target: BaseModel,
        store: BasisStore | None = None,
        workers: int = 1,
    ):
        self.source = source
        self.target = target
        self.workers = workers
        self.store = MemoryStore() if store is None else store
        self._comparisons: dict[str, Comparison] = {}

    def matching(self, mode: Match = "auto", options: MigrationOptions = OPTIONS) -> Matching:
        """Match modules; reads weights only where shapes and order leave a choice.

        Args:
            mode: `auto`, `name`, `block` or `module` (see `match_modules`).
            options: `match_score`, and for `similarity` the rank rule and pairing of ranks.

        Returns:
            Source path by target path, and the alignments behind it.
        """

        def evidence(sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
            if options.match_score == "cosine":
                return cosines(self.source, self.target, sources, targets)
            pairs = [(path, source_path) for path in targets for source_path in sources]
            compared = self._compared(pairs, options)
            return similarities(
                lambda path, source: _mean_similarity(compared[path, source]), sources, targets
            )

        specs = self.source.spec, self.target.spec
        return match_modules(*specs, evidence, mode, source_paths(*specs, PUBLISHED))

    def measure(
        self,
        pairs: Mapping[str, str],
        options: MigrationOptions,
        progress: Progress | None = None,
    ) -> dict[str, Measure]:
        """Similarity of each pair of modules, or that their weights are equal.

        Args:
            pairs: source path by target path.
            options: rank rule, pairing of ranks, what to do with identical weights.
            progress: called after each pair.

        Returns:
            Measures by target path. `copy` needs none and computes none.
        """
        if options.method == "copy":
            return dict.fromkeys(pairs, Measure())
        compared = self._compared(
            [pair for pair in pairs.items() if not self._copied(*pair, options)], options, progress
        )
        return {
            pair[0]: _measure(compared[pair]) if pair in compared else Measure(identical=True)
            for pair in pairs.items()
        }

    def _copied(self, path: str, source_path: str, options: MigrationOptions) -> bool:
        return options.identical == "copy" and self._identical(path, source_path)

    def _compared(
        self,
        pairs: Sequence[tuple[str, str]],
        options: MigrationOptions,
        progress: Progress | None = None,
    ) -> dict[tuple[str, str], Comparison]:
        """Comparisons of (target path, source path), from the store or computed."""
        known = self._comparisons
        keys = {pair: self._comparison_key(*pair, options) for pair in pairs}
        for key in keys.values() - known.keys():
            if (stored := self.store.operators.comparison(key)) is not None:
                known[key] = stored
        missing = {keys[pair]: pair for pair in pairs if keys[pair] not in known}
        if missing:
            self._prepare_bases(list(missing.values()), options, progress)
            todo = {key: self._weights(*pair, options) for key, pair in missing.items()}
            known |= compare_all(self.store, todo, self.workers, progress)
        return {pair: known[key] for pair, key in keys.items()}

    def _comparison_key(self, path: str, source_path: str, options: MigrationOptions) -> str:
        source, target = self.source.fingerprint(source_path), self.target.fingerprint(path)
        return comparison_key(source, target, options.basis_rank, options.pair_rank)

    def _prepare_bases(
        self,
        pairs: Sequence[tuple[str, str]],
        options: MigrationOptions,
        progress: Progress | None,
    ) -> None:
        """Compute what the store lacks, in worker processes when there is much of it."""
        rule = basis_rule(options.basis_rank)
        for model, place in ((self.source, 1), (self.target, 0)):
            paths = dict.fromkeys(pair[place] for pair in pairs)
            compute_bases(model, paths, self.store, rule, progress, self.workers)

    def _weights(self, path: str, source_path: str, options: MigrationOptions) -> WeightPair:
        """Both weights with the ranks of the pair, for which the store then has enough columns."""
        rule = basis_rule(options.basis_rank)
        owners = (self.source, source_path), (self.target, path)
        own = [choose_rank(self._extent(*owner, rule).s, rule) for owner in owners]
        k_s, k_t = common_rank(own[0], own[1], options.pair_rank)
        for owner, k in zip(owners, (k_s, k_t), strict=True):
            self._extent(*owner, ("rank", k))
        shape = self.target.spec.modules[path].matrix_shape
        source, target = (model.fingerprint(p) for model, p in owners)
        return WeightPair(source, target, k_s, k_t, shape)

    def _extent(self, model: BaseModel, path: str, rule: Rule) -> Extent:
        """What the store can serve, once it can serve this rule."""
        extent = self.store.extent(model.fingerprint(path))
        if extent is None or extent.columns < choose_rank(extent.s, rule):
            extent = load_or_compute(model, path, self.store, rule).extent
        return extent

    def prepare_operators(
        self,
        pairs: Sequence[tuple[str, str]],
        options: MigrationOptions,
        progress: Progress | None = None,
    ) -> None:
        """Prepare what `operators` will be asked for, in worker processes when it is much.

        Args:
            pairs: (target path, source path) of modules.
            options: arm, rank rule, pairing of ranks.
            progress: called with ("operators", done, total).
        """
        compared = self._compared(pairs, options, progress)
        todo: dict[Method, dict[str, tuple[str, str]]] = {}
        for pair, comparison in compared.items():
            method = self._method(pair[0], comparison, options)
            key = self._operator_key(pair, method, comparison, options)
            if not self.store.operators.has(key):
                todo.setdefault(method, {})[key] = pair
        for method, missing in todo.items():
            self._prepare_bases(list(missing.values()), options, progress)
            weights = {key: self._weights(*pair, options) for key, pair in missing.items()}
            min_cos = options.rotation_min_cos
            prepare_all(self.store, weights, method, min_cos, self.workers, progress)

    def operators(self, path: str, source_path: str, options: MigrationOptions) -> ModuleOperators:
        """Prepared operators of a pair of modules.

        Args:
            path: target module.
            source_path: source module.
            options: arm, rank rule, pairing of ranks.

        Returns:
            The operators of `effective_method` for the ranks of the pair.

        Raises:
            LookupError: the store does not keep what it was given.
        """
        pair = path, source_path
        comparison = self._compared([pair], options)[pair]
        method = self._method(path, comparison, options)
        key = self._operator_key(pair, method, comparison, options)
        operators = self.store.operators.get(key)
        if operators is None:  # not prepared yet, or its file is damaged
            weights = {key: self._weights(*pair, options)}
            prepare_all(self.store, weights, method, options.rotation_min_cos, 1)
            operators = self.store.operators.get(key)
        if operators is None:
            raise LookupError(f"{path}: operators {key} were stored and are not there")
        return operators

    def _method(self, path: str, compared: Comparison, options: MigrationOptions) -> Method:
        method = next(m for m in get_args(Method) if m == options.method)
        shape = self.target.spec.modules[path].matrix_shape
        found = effective_method(method, compared.k_source, compared.k_target, shape)
        return method if found is None else found

    def _operator_key(
        self,
        pair: tuple[str, str],
        method: Method,
        compared: Comparison,
        options: MigrationOptions,
    ) -> str:
        source, target = self.source.fingerprint(pair[1]), self.target.fingerprint(pair[0])
        ranks, min_cos = (compared.k_source, compared.k_target), options.rotation_min_cos
        return operator_key(source, target, method, *ranks, min_cos)

    def _identical(self, path: str, source_path: str) -> bool:
        """Equal after casting both weights to the narrower of their dtypes."""
        if self.source.fingerprint(source_path) == self.target.fingerprint(path):
            return True
        a, b = self.source.weight(source_path), self.target.weight(path)
        if a.dtype == b.dtype:
            return False
        narrower = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
        with np.errstate(over="ignore"):  # infinite there is not equal to a finite number
            return np.array_equal(a.astype(narrower), b.astype(narrower))


def _measure(compared: Comparison) -> Measure:
    similarity = ModuleSimilarity(*compared[:6])
    flags = ("clustered-cut",) if compared.gap < CLUSTERED_GAP else ()
    return Measure(similarity=similarity, flags=flags)


def _mean_similarity(compared: Comparison) -> float:
    """Mean of both sides, corrected for chance where that says something."""
    left, right = compared.phi_hat_left, compared.phi_hat_right
    left = compared.phi_left if left is None else left
    right = compared.phi_right if right is None else right
    return (left + right) / 2
