"""A source and a target base model together: matching by weights, similarity, operators."""

from collections.abc import Mapping

import numpy as np

from prolora_jax.bases import BasisStore, MemoryStore, Progress, compute_bases, load_or_compute
from prolora_jax.basis import Basis, choose_rank, common_rank, cut_gap
from prolora_jax.io.checkpoint import BaseModel
from prolora_jax.matching import BLOCK, Matching, blocks_of, match_modules
from prolora_jax.options import MigrationOptions, basis_rule
from prolora_jax.plan import Measure, ModuleSimilarity
from prolora_jax.similarity import side_similarity

CLUSTERED_GAP = 1e-3
"""A cut with a smaller relative gap is flagged: the span depends on rounding (method.md 1)."""


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

    def matching(self, mode: str = "auto") -> Matching:
        """Match modules; reads weights only where block counts differ."""
        return match_modules(self.source.spec, self.target.spec, self.block_scores, mode)

    def block_scores(self, slot: str) -> np.ndarray:
        """Cosine of the base weights of every source and target block of a slot.

        Args:
            slot: path of a slot that both bases have.

        Returns:
            `(source blocks, target blocks)`, in [-1, 1]; over the roles and shapes that the two
            blocks share, all weights of a block as one long vector.
        """
        source = blocks_of(self.source.spec)[slot]
        target = blocks_of(self.target.spec)[slot]
        dots = np.zeros((len(source), len(target)))
        norms_s, norms_t = np.zeros(len(source)), np.zeros(len(target))
        for role, shape in source[0].items():
            if any(block.get(role) != shape for block in (*source.values(), *target.values())):
                continue
            # One role at a time: a whole slot of SDXL would be gigabytes.
            rows_s = self._rows(self.source, slot, len(source), role)
            rows_t = self._rows(self.target, slot, len(target), role)
            dots += rows_s @ rows_t.T
            norms_s += np.einsum("ij,ij->i", rows_s, rows_s)
            norms_t += np.einsum("ij,ij->i", rows_t, rows_t)
        scale = np.sqrt(np.outer(norms_s, norms_t))
        return np.divide(dots, scale, out=np.zeros_like(dots), where=scale > 0)

    @staticmethod
    def _rows(model: BaseModel, slot: str, blocks: int, role: str) -> np.ndarray:
        paths = [f"{slot}{BLOCK}{i}.{role}" for i in range(blocks)]
        return np.stack([model.matrix(path).ravel() for path in paths])

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
        source, target, k_s, k_t = self.spans(path, source_path, options)
        left = side_similarity(source.u[:, :k_s], target.u[:, :k_t])
        right = side_similarity(source.v[:, :k_s], target.v[:, :k_t])
        shape = self.target.spec.modules[path].matrix_shape
        gap = min(cut_gap(source.s, k_s, shape), cut_gap(target.s, k_t, shape))
        similarity = ModuleSimilarity(
            left.phi, right.phi, left.corrected, right.corrected, k_s, k_t
        )
        flags = ("clustered-cut",) if gap < CLUSTERED_GAP else ()
        return Measure(similarity=similarity, flags=flags)

    def _identical(self, path: str, source_path: str) -> bool:
        """Equal after casting both weights to the narrower of their dtypes."""
        if self.source.fingerprint(source_path) == self.target.fingerprint(path):
            return True
        a, b = self.source.weight(source_path), self.target.weight(path)
        if a.dtype == b.dtype:
            return False
        narrower = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
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
