"""A source and a target base model together: matching by weights, similarity, operators."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from prolora_jax.architectures.correspondence import CORRESPONDENCES, source_paths
from prolora_jax.bases import BasisStore, MemoryStore, Progress, compute_bases, load_or_compute
from prolora_jax.basis import Basis, choose_rank, common_rank, cut_gap
from prolora_jax.evidence import cosines, similarities
from prolora_jax.io.checkpoint import BaseModel
from prolora_jax.matching import Matching, match_modules
from prolora_jax.options import Match, MigrationOptions, basis_rule
from prolora_jax.plan import Measure, ModuleSimilarity
from prolora_jax.similarity import side_similarity

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
            rule = basis_rule(options.basis_rank)
            for model, paths in ((self.source, sources), (self.target, targets)):
                compute_bases(model, paths, self.store, rule, workers=self.workers)
            return similarities(partial(self._mean_similarity, options), sources, targets)

        specs = self.source.spec, self.target.spec
        return match_modules(*specs, evidence, mode, source_paths(*specs, PUBLISHED))

    def _mean_similarity(self, options: MigrationOptions, path: str, source_path: str) -> float:
        """Mean of both sides, corrected for chance where that says something."""
        found, _ = self._compare(path, source_path, options)
        left = found.phi_left if found.phi_hat_left is None else found.phi_hat_left
        right = found.phi_right if found.phi_hat_right is None else found.phi_hat_right
        return (left + right) / 2

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
        if options.method != "copy":
            self._prepare_bases(pairs, options, progress)
        measures = {}
        for done, (path, source_path) in enumerate(pairs.items(), start=1):
            measures[path] = self._measure(path, source_path, options)
            if progress is not None:
                progress("similarity", done, len(pairs))
        return measures

    def _prepare_bases(
        self, pairs: Mapping[str, str], options: MigrationOptions, progress: Progress | None
    ) -> None:
        """Compute what the store lacks, in worker processes when there is much of it."""
        wanted = {
            path: source_path
            for path, source_path in pairs.items()
            if options.identical == "project" or not self._identical(path, source_path)
        }
        rule = basis_rule(options.basis_rank)
        for model, paths in ((self.source, wanted.values()), (self.target, wanted)):
            compute_bases(model, paths, self.store, rule, progress, self.workers)

    def _measure(self, path: str, source_path: str, options: MigrationOptions) -> Measure:
        if options.method == "copy":
            return Measure()
        if options.identical == "copy" and self._identical(path, source_path):
            return Measure(identical=True)
        similarity, gap = self._compare(path, source_path, options)
        flags = ("clustered-cut",) if gap < CLUSTERED_GAP else ()
        return Measure(similarity=similarity, flags=flags)

    def _compare(
        self, path: str, source_path: str, options: MigrationOptions
    ) -> tuple[ModuleSimilarity, float]:
        """Similarity of two weights, and the smaller of the gaps at their cuts."""
        source, target, k_s, k_t = self.spans(path, source_path, options)
        left = side_similarity(source.u[:, :k_s], target.u[:, :k_t])
        right = side_similarity(source.v[:, :k_s], target.v[:, :k_t])
        shape = self.target.spec.modules[path].matrix_shape
        gap = min(cut_gap(source.s, k_s, shape), cut_gap(target.s, k_t, shape))
        similarity = ModuleSimilarity(
            left.phi, right.phi, left.corrected, right.corrected, k_s, k_t
        )
        return similarity, gap

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

    def spans(
        self, path: str, source_path: str, options: MigrationOptions
    ) -> tuple[Basis, Basis, int, int]:
        """Both bases of a pair of modules with enough columns for the common k.

        Args:
            path: target module.
            source_path: source module.
            options: rank rule and pairing of ranks.

        Returns:
            (source basis, target basis, k_source, k_target).
        """
        rule = basis_rule(options.basis_rank)
        source = self._basis(self.source, source_path, rule)
        target = self._basis(self.target, path, rule)
        k_s, k_t = common_rank(
            choose_rank(source.s, rule), choose_rank(target.s, rule), options.pair_rank
        )
        source = self._basis(self.source, source_path, ("rank", k_s))
        target = self._basis(self.target, path, ("rank", k_t))
        return source, target, k_s, k_t

    def _basis(self, model: BaseModel, path: str, rule: tuple[str, float | None]) -> Basis:
        return load_or_compute(model, path, self.store, rule)
