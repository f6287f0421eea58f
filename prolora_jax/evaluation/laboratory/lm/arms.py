"""Every way in which the laboratory moves an adapter of a language model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.fitting import fit
from prolora_jax.architectures.llm.names import LM
from prolora_jax.errors import AdapterRefused
from prolora_jax.evaluation.laboratory.lm.recipe import LmLesson
from prolora_jax.evaluation.laboratory.lm.training import LmFactors
from prolora_jax.evaluation.laboratory.lm.workshop import LmWorkshop
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import plan_fitted, run_plan
from prolora_jax.nets.lm.loading import load_lm
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Skip
from prolora_jax.refine.job.refined import ToRefine
from prolora_jax.refine.job.student import factors_of
from prolora_jax.refine.lm.pair import TextPairRefinement

COPY = MigrationOptions(method="copy")
_OPEN: dict[str, Any] = {"identical": "project", "min_similarity": -1.0}
MOVES: Mapping[str, MigrationOptions] = {
    "copy": COPY,
    "copy match=name": replace(COPY, match="name"),
    "copy forced": replace(COPY, min_similarity=-1.0),
    "subspace": MigrationOptions(method="subspace"),
    "null-space": MigrationOptions(method="null-space"),
    "prolora": MigrationOptions(method="prolora"),
    "prolora-full": MigrationOptions(),
    "rotation": MigrationOptions(method="rotation"),
    "prolora open": MigrationOptions(method="prolora", **_OPEN),
    "prolora-full open": MigrationOptions(method="prolora-full", **_OPEN),
    "rotation open": MigrationOptions(method="rotation", **_OPEN),
    "half": MigrationOptions(method="prolora", basis_rank="fraction=0.5", **_OPEN),
}
"""What the command does with these options; `open`: nothing is copied because it is equal."""
SHIFTED, STUDENT, NONE, TRAINED = "shifted", "student", "none", "trained"
ARMS = (*MOVES, SHIFTED, STUDENT)
_LAYER = re.compile(rf"({re.escape(LM)}model\.layers\.)(\d+)(\..*)")


@dataclass(frozen=True)
class LmMoved:
    """What an arm puts beside the target.

    Attributes:
        factors: none where nothing moved.
        refused: why, where the command would have ended with that.
        disagreement: R of the pair, of a student.
    """

    factors: LmFactors
    refused: str = ""
    disagreement: float | None = None


class LmPair:
    """The source and one target.

    Attributes:
        workshop: where both are.
        target: name of the target.
    """

    def __init__(self, workshop: LmWorkshop, target: str):
        self.workshop, self.target = workshop, target

    @cached_property
    def bases(self) -> BasePair:
        """Both, by weights."""
        folders = [self.workshop.base_folder(n) for n in (self.workshop.source, self.target)]
        store = FolderStore(self.workshop.folder / "store")
        source, target = (load_base_model(folder, store.known) for folder in folders)
        return BasePair(source, target, store)

    def moved(self, arm: str, lesson: LmLesson, seed: int) -> LmMoved:
        """The source's adapter on the target.

        Args:
            arm: of `ARMS`.
            lesson: that the adapter was taught.
            seed: of the adapter.
        """
        file = self.workshop.adapter_file(self.workshop.source, lesson, seed)
        given = load_adapter(file, self.bases.source.spec, quiet=True)
        if arm == STUDENT:
            return self._taught(given)
        if arm == SHIFTED:
            return LmMoved(self._shifted(factors_of(given)))
        try:
            return LmMoved(factors_of(self._run(given, MOVES[arm])))
        except AdapterRefused as refusal:
            return LmMoved({}, refusal.code.value)

    def _run(self, given: Adapter, options: MigrationOptions) -> Adapter:
        fitted = fit(given, self.bases.source.spec)
        plan = plan_fitted(fitted, self.bases, options)
        return run_plan(fitted.adapter, self.bases, plan)[0]

    def _shifted(self, factors: LmFactors) -> LmFactors:
        """Each layer's update in the next one; the last one's in the first.

        By number: in a target with fewer layers, those beyond its last one start again at its
        first, and replace what was there. No rule looks at those.
        """
        modules, found = self.bases.target.spec.modules, {}
        depth = 1 + max(int(m[2]) for m in map(_LAYER.fullmatch, modules) if m is not None)
        for path, pair in factors.items():
            layer = _LAYER.fullmatch(path)
            assert layer is not None
            there = f"{layer[1]}{(int(layer[2]) + 1) % depth}{layer[3]}"
            shape = pair[1].shape[0], pair[0].shape[1]
            if there in modules and modules[there].matrix_shape == shape:
                found[there] = pair
        return found

    def _taught(self, given: Adapter) -> LmMoved:
        fitted = fit(given, self.bases.source.spec)
        plan = plan_fitted(fitted, self.bases, replace(COPY, min_similarity=-1.0))
        copied, report = run_plan(fitted.adapter, self.bases, plan, may_be_empty=True)
        modules, ranks = self.bases.target.spec.modules, {m.path: m.rank for m in given.modules}
        unlike = {s.source_path for s in report.skipped if s.reason is Skip.SHAPE_MISMATCH}
        from_zero = {path: ranks[path] for path in modules if path in unlike}
        name = f"adapter-{given.fingerprint[:16]}"
        one = ToRefine(fitted.adapter, copied, from_zero, (), name)
        (found,) = self._refinement.refine([one])
        self._refinement.folder(one).remove()
        return LmMoved(factors_of(found.adapter), disagreement=found.record.disagreement)

    @cached_property
    def _refinement(self) -> TextPairRefinement:
        lab, names = self.workshop.lab, (self.workshop.source, self.target)
        stamps = [lab.base_stamp(name) for name in names]
        source, target = (self.workshop.base_folder(name) for name in names)
        return TextPairRefinement(
            lambda: load_lm(source),
            lambda: load_lm(target),
            self.bases.target.spec,
            min,
            lab.refine,
            self.workshop.folder / "texts" / self.target,
            lab.refine.stamp(*stamps),
            limit=float("inf"),
        )
