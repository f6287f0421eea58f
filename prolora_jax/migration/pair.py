"""A source and a target base model together: matching by weights, similarity, operators."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from prolora_jax.engines.progress import Progress
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.matching.base_models import match_base_models
from prolora_jax.matching.matching import Matching
from prolora_jax.matching.pairs import ModulePair, module_pairs
from prolora_jax.method.basis import BasisRule, Extent, common_rank
from prolora_jax.method.operators import ModuleOperators, effective_method
from prolora_jax.method.prepared import Comparison, ComparisonKey, OperatorKey
from prolora_jax.migration.evidence import cosines, distances, similarities
from prolora_jax.migration.kinship import (
    LEAST_COSINE,
    Strangers,
    median_cosine,
    require_a_common_shape,
)
from prolora_jax.migration.pair_work import (
    OperatorsAhead,
    WeightPair,
    by_options,
    bytes_of_operators,
    bytes_of_subspaces,
    compare_all,
    compared_before,
    in_groups,
    mean_similarity,
    measure_of,
    prepare,
    prepare_all,
    to_prepare,
)
from prolora_jax.migration.slicing import PairSlices
from prolora_jax.migration.tokens import PairTokens
from prolora_jax.plans.nearness import is_close, is_twin, twins_are_copied, weights_may_decide
from prolora_jax.plans.options import Match, MigrationOptions
from prolora_jax.plans.plan import Measure
from prolora_jax.subspaces.compute import compute_subspaces, load_or_compute
from prolora_jax.subspaces.store import BasisStore, MemoryStore

_log = logging.getLogger(__name__)

OPTIONS = MigrationOptions()
IDENTICAL, CLOSE, TWIN = Measure(identical=True), Measure(close=True), Measure(twin=True)


class _Known(NamedTuple):
    """What is known of two modules under one rule for their ranks."""

    comparison: Comparison
    measure: Measure


class BasePair:
    """What can be known of two base models without any adapter.

    Thousands of adapters ask for the same: what was found once is looked up after that.

    Args:
        source: base model that adapters were trained on.
        target: base model that they move to.
        store: where subspaces and what comes of them are found and kept; memory when None.
        workers: processes for what has to be computed (see `compute_subspaces`).
    """

    def __init__(
        self,
        source: BaseModel,
        target: BaseModel,
        store: BasisStore | None = None,
        workers: int = 1,
    ):
        self.source, self.target = source, target
        self.workers = workers
        self.store = MemoryStore() if store is None else store
        for model in (source, target):
            for note in model.notes:
                _log.warning("%s: %s", model.location, note)
        # By `basis_rank` and `pair_rank`, which all that is compared depends on.
        self._known: dict[tuple[str, str], dict[ModulePair, _Known]] = {}
        self._equal: dict[ModulePair, bool] = {}
        self._apart: dict[ModulePair, tuple[float, float, float]] = {}
        self._matchings: dict[tuple[object, ...], Matching] = {}
        self._ahead: OperatorsAhead | None = None
        self._cosine: tuple[float, int] | None = None
        self.tokens = PairTokens(source, target)
        self.slices = PairSlices(source, target, self.store.tables)

    def matching(
        self, mode: Match = "auto", options: MigrationOptions = OPTIONS, *, tokens: bool = True
    ) -> Matching:
        """Match modules; reads weights only where shapes and order leave a choice, and only once.

        Args:
            mode: `auto`, `name`, `block` or `module` (see `match_modules`).
            options: `match_score`, and for `similarity` the rank rule and pairing of ranks.
            tokens: whether rows may be found by their tokens, for which tokenizers are read.

        Returns:
            Source path by target path, and the alignments behind it.
        """
        asked: tuple[object, ...] = (mode, options.match_score)
        if options.match_score == "similarity":
            asked += (options.basis_rank, options.pair_rank, options.rules)
        if asked not in self._matchings:
            self._matchings[asked] = self._match(mode, options)
        found = self._matchings[asked]
        return self.tokens.matched(found) if tokens else found

    def _match(self, mode: Match, options: MigrationOptions) -> Matching:
        def evidence(sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
            if options.match_score == "cosine":
                return cosines(self.source, self.target, sources, targets, self.store.tables)
            pairs = [ModulePair(source, target) for target in targets for source in sources]
            known = self._compared(pairs, options)
            return similarities(
                lambda pair: mean_similarity(known[pair].comparison), sources, targets
            )

        found = match_base_models(self.source.spec, self.target.spec, evidence, mode)
        return self.slices.matched(found)

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
        self.identify(module_pairs(pairs))  # a report has the weights of copies, too
        found = {p: Measure() for p in pairs if options.options_for(p).method == "copy"}
        found |= dict.fromkeys(self.tokens.moving(pairs), Measure(by_token=True))
        found |= dict.fromkeys(self.slices.among(pairs), Measure(sliced=True))
        asked = module_pairs({p: source for p, source in pairs.items() if p not in found})
        copied = options.identical == "copy"
        equal = {pair for pair in asked if copied and self._identical(pair)}
        copies = dict.fromkeys(equal, IDENTICAL)
        copies |= self._near([pair for pair in asked if pair not in equal], options)
        known = self._compared([p for p in asked if p not in copies], options, progress)
        for pair in asked:
            found[pair.target] = copies[pair] if pair in copies else known[pair].measure
        return found

    def require_kinship(self, pairs: Mapping[str, str], options: MigrationOptions) -> None:
        """Refuse two language models or transformers whose weights have nothing in common.

        Args:
            pairs: source path by target path, of the whole matching: what is found is kept.
            options: a `min_similarity` of -1 takes strangers, too.

        Raises:
            Strangers: they have not.
            UnlikeWidths: not even one shape.
        """
        if options.min_similarity <= -1.0:
            return
        require_a_common_shape(self.source, self.target, pairs)
        slices = self.slices.among(pairs)
        pairs = {path: own for path, own in pairs.items() if path not in slices}
        if self._cosine is None:
            found = median_cosine(self.source, self.target, pairs, self.store.tables)
            self._cosine = (1.0, 0) if found is None else found
        if self._cosine[0] < LEAST_COSINE:
            raise Strangers(self.source, self.target, *self._cosine)

    def _near(
        self, pairs: Iterable[ModulePair], options: MigrationOptions
    ) -> dict[ModulePair, Measure]:
        """Pairs that are copied by their weights alone: packed twins, and close ones."""
        own = {pair: options.options_for(pair.target) for pair in pairs}
        packed = {p for p in own if twins_are_copied(own[p]) and self._is_packed(p)}
        close = {p for p in own if weights_may_decide(own[p])}
        unknown = [p for p in own if p in packed | close and p not in self._apart]
        if unknown:
            table = distances(self.source, self.target, unknown, self.store.tables)
            self._apart |= {p: tuple(row) for p, row in zip(unknown, table.tolist(), strict=True)}
        found = {p: CLOSE for p in close if is_close(*self._apart[p][:2])}
        return found | {p: TWIN for p in packed if is_twin(*self._apart[p])}

    def _is_packed(self, pair: ModulePair) -> bool:
        """Whether either weight has 8 bits or fewer."""
        sides = self.source.packing(pair.source), self.target.packing(pair.target)
        return any(packing is not None for packing in sides)

    def _compared(
        self,
        pairs: Iterable[ModulePair],
        options: MigrationOptions,
        progress: Progress | None = None,
    ) -> Mapping[ModulePair, _Known]:
        """All that is known under these options; of `pairs` at least, looked up or computed."""
        if not options.rules:
            return self._compared_alike(pairs, options, progress)
        found: dict[ModulePair, _Known] = {}
        for own, group in by_options(pairs, options):
            known = self._compared_alike(group, own, progress)
            found |= {pair: known[pair] for pair in group}
        return found

    def _compared_alike(
        self,
        pairs: Iterable[ModulePair],
        options: MigrationOptions,
        progress: Progress | None = None,
    ) -> Mapping[ModulePair, _Known]:
        """The same for pairs that have one rank rule."""
        ranks = options.basis_rank, options.pair_rank
        known = self._known.setdefault(ranks, {})
        unknown = [pair for pair in pairs if pair not in known]
        if not unknown:
            return known
        self.identify(unknown)
        keys = {p: ComparisonKey(*self._weights(p), *ranks) for p in unknown}
        modules = {key: pair for pair, key in keys.items()}  # equal weights are compared once
        found = compared_before(self.store, modules)
        missing = {key: pair for key, pair in modules.items() if key not in found}
        if missing:
            self._compute_subspaces(missing.values(), options, progress)
        shapes = {key: self._matrix_shape(pair) for key, pair in modules.items()}
        for group in in_groups(self.store, shapes, missing, self.workers):
            found |= compared_before(self.store, group) if self.store.share else {}
            left = {key: pair for key, pair in group.items() if key not in found}
            todo = {key: self._ensure_retained(pair, options) for key, pair in left.items()}
            found |= compare_all(self.store, todo, self.workers, progress)
        known |= {pair: _Known(found[key], measure_of(found[key])) for pair, key in keys.items()}
        return known

    def identify(self, pairs: Iterable[ModulePair]) -> None:
        """Have the fingerprints of some weights at hand, looked up or read together."""
        pairs = list(pairs)
        self.source.fingerprints(pair.source for pair in pairs)
        self.target.fingerprints(pair.target for pair in pairs)

    def _weights(self, pair: ModulePair) -> tuple[str, str]:
        """Fingerprints of (source, target)."""
        return self.source.fingerprint(pair.source), self.target.fingerprint(pair.target)

    def _matrix_shape(self, pair: ModulePair) -> tuple[int, int]:
        return self.target.spec.modules[pair.target].matrix_shape

    def _compute_subspaces(
        self, pairs: Iterable[ModulePair], options: MigrationOptions, progress: Progress | None
    ) -> None:
        """Compute what the store lacks, in worker processes when there is much of it."""
        pairs = list(pairs)
        self.store.expect(self._bytes_to_come(pairs))
        sources, targets = map(dict.fromkeys, zip(*pairs, strict=True))
        for model, paths in ((self.source, sources), (self.target, targets)):
            for path in paths:
                model.has_lost(path)  # which is logged
            rule = options.basis_rule
            compute_subspaces(model, paths, self.store, rule, progress, self.workers)

    def _bytes_to_come(self, pairs: Sequence[ModulePair]) -> int:
        """About how much a store will get for these pairs, beside what it has."""
        shapes: dict[str, tuple[int, int]] = {}
        for pair in pairs:
            shapes |= dict.fromkeys(self._weights(pair), self._matrix_shape(pair))
        missing = {p: shape for p, shape in shapes.items() if not self.store.has(p)}
        found = sum(map(bytes_of_subspaces, missing.values()))
        if self.store.keeps:
            todo = {self._weights(pair): self._matrix_shape(pair) for pair in pairs}
            found += sum(map(bytes_of_operators, todo.values()))
        return found

    def _ensure_retained(self, pair: ModulePair, options: MigrationOptions) -> WeightPair:
        """Have the store hold what is retained of both weights, and say how much that is."""
        rule = options.basis_rule.for_shape(self._matrix_shape(pair))
        source = self._ensure_stored(self.source, pair.source, rule)
        target = self._ensure_stored(self.target, pair.target, rule)
        own = rule.retained(source.s), rule.retained(target.s)
        ranks = common_rank(*own, options.pair_rank)
        self._ensure_columns(pair, *ranks)
        return WeightPair(*self._weights(pair), *ranks, self._matrix_shape(pair))

    def _ensure_columns(self, pair: ModulePair, k_source: int, k_target: int) -> None:
        """Have the store hold so many singular vectors of both weights."""
        self._ensure_stored(self.source, pair.source, BasisRule("rank", k_source))
        self._ensure_stored(self.target, pair.target, BasisRule("rank", k_target))

    def _ensure_stored(self, model: BaseModel, path: str, rule: BasisRule) -> Extent:
        """Compute a weight's subspaces unless the store serves this rule; what it then serves."""
        extent = self.store.extent(model.fingerprint(path))
        if extent is None or extent.columns < rule.retained(extent.s):
            extent = load_or_compute(model, path, self.store, rule).extent
        return extent

    def prepare_operators(
        self,
        pairs: Sequence[ModulePair],
        options: MigrationOptions,
        progress: Progress | None = None,
    ) -> None:
        """Prepare what `operators` will be asked for, in worker processes when it is much.

        Args:
            pairs: of modules.
            options: method, rank rule, pairing of ranks.
            progress: called with ("operators", done, total).
        """
        known = self._compared(pairs, options, progress)
        keys = {self._operator_key(p, known[p].comparison, options): p for p in pairs}
        missing = to_prepare(self.store, keys)
        if self.store.keeps:
            shapes = {key: self._matrix_shape(pair) for key, pair in keys.items()}
            for group in in_groups(self.store, shapes, missing, self.workers):
                left = to_prepare(self.store, group) if self.store.share else group
                self._compute_for(left, options, progress)
                self._prepare(left, self.workers, progress)
        elif missing:
            self._compute_for(missing, options, progress)
            for key, pair in missing.items():
                self._ensure_columns(pair, key.k_source, key.k_target)
            self._ahead = OperatorsAhead(self.store, missing, self.workers)

    def _compute_for(
        self,
        todo: Mapping[OperatorKey, ModulePair],
        options: MigrationOptions,
        progress: Progress | None,
    ) -> None:
        """Compute the subspaces of what is to be prepared."""
        for own, group in by_options(todo.values(), options):
            self._compute_subspaces(group, own, progress)

    def operators(self, pair: ModulePair, options: MigrationOptions) -> ModuleOperators:
        """Prepared operators of a pair of modules.

        Args:
            pair: source and target module.
            options: method, rank rule, pairing of ranks.

        Returns:
            The operators of `effective_method` for the ranks of the pair; read-only.

        Raises:
            LookupError: the store does not keep what it was given.
        """
        comparison = self._compared([pair], options)[pair].comparison
        key = self._operator_key(pair, comparison, options)
        operators = self.store.operators.get(key)
        if operators is None and not self.store.keeps:
            if self._ahead is None:
                self._ensure_columns(pair, key.k_source, key.k_target)
                return prepare(self.store, key)
            return self._ahead.take(key)
        if operators is None:  # not prepared yet, or its file is damaged
            self._prepare({key: pair}, 1)
            operators = self.store.operators.get(key)
        if operators is None:
            raise LookupError(f"{pair.target}: operators {key} were stored and are not there")
        return operators

    def _operator_key(
        self, pair: ModulePair, comparison: Comparison, options: MigrationOptions
    ) -> OperatorKey:
        ranks = comparison.k_source, comparison.k_target
        shape, options = self._matrix_shape(pair), options.options_for(pair.target)
        method = effective_method(options.method, *ranks, shape) or options.method
        return OperatorKey.of(self._weights(pair), method, ranks, options.rotation_min_cos)

    def _prepare(
        self, todo: Mapping[OperatorKey, ModulePair], workers: int, progress: Progress | None = None
    ) -> None:
        for key, pair in todo.items():
            self._ensure_columns(pair, key.k_source, key.k_target)
        shapes = {key: self._matrix_shape(pair) for key, pair in todo.items()}
        prepare_all(self.store, shapes, workers, progress)

    def _identical(self, pair: ModulePair) -> bool:
        """Equal after casting both weights to the narrower of their dtypes."""
        if pair not in self._equal:
            self._equal[pair] = self._reads_equal(pair)
        return self._equal[pair]

    def _reads_equal(self, pair: ModulePair) -> bool:
        source, target = self._weights(pair)
        if source == target:
            return True
        a, b = self.source.weight(pair.source), self.target.weight(pair.target)
        if a.dtype == b.dtype:
            return False
        narrower = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
        with np.errstate(over="ignore"):  # infinite there is not equal to a finite number
            return np.array_equal(a.astype(narrower), b.astype(narrower))
