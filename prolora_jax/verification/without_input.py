"""A migrated adapter checked without the adapter that it was made from.

Names, shapes, ranks, dtypes, the plan against both base models and every number that the base
models or the file itself decide are checked as ever. Whether an update is the right one, nothing
says: the result is never ok.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.plans.folder_report import FileReport, PairReport
from prolora_jax.plans.plan import Action, MigrationPlan, Skip, SkippedModule
from prolora_jax.plans.report import MigrationReport, ModuleReport, count
from prolora_jax.verification.adapter import AdapterCheck
from prolora_jax.verification.by_sight import norm_problems, record_problems
from prolora_jax.verification.claim import read_claim
from prolora_jax.verification.contents import SCALES_FOLDED, module_problems, rank_problems
from prolora_jax.verification.dense import DenseResult, recompute
from prolora_jax.verification.header import provenance_problems, used_weights
from prolora_jax.verification.made_from import packing_problems
from prolora_jax.verification.recompute import UNASKED, Thoroughness
from prolora_jax.verification.replan import alignment_problems
from prolora_jax.verification.result import VerifyReport
from prolora_jax.verification.totals import SLACK
from prolora_jax.verification.updates import (
    FLOAT32_TOLERANCE,
    TOLERANCES,
    UpdateCheck,
    dtype_problems,
    still_problems,
)
from prolora_jax.verification.weights import Weights, dense_update, finite_matrix, update_norm

_WIDEST = 4096
"""Rank of a stand-in: what a report claims beyond it is not believed."""

_STAYS = frozenset({"subspace", "null-space", "prolora"})
"""Arms whose result the same arm, from the target to the target, leaves as it is."""


def verify_without_input(
    output: Adapter,
    source: Weights,
    target: Weights,
    report: Mapping[str, Any],
    absent: Sequence[str],
    progress: Callable[[str, int, int], None] | None = None,
    *,
    unknown: Sequence[str] = (),
    thoroughness: Thoroughness = UNASKED,
) -> VerifyReport:
    """Check all of a migrated adapter that can be checked without its input.

    Args:
        output: the migrated adapter, resolved against `target`'s spec.
        source: base model that the input was trained on.
        target: base model of `output`.
        report: the migration report as plain dicts and lists.
        absent: the adapters that it was made from and that are not there.
        progress: called with ("verify", done, total) after each module.
        unknown: fields of the report's file that no report has, where `report` lacks them.
        thoroughness: how much is recomputed.

    Returns:
        What was found; never ok.

    Raises:
        UsageError: when `report` is not a migration report.
        BaseModelError: when a weight has NaN or infinite numbers.
    """
    claim = read_claim(report, output.origin)
    claim = replace(claim, unknown=(*claim.unknown, *unknown))
    before = stand_in(claim.report, output, source.spec)
    check = _WithoutInput(output, before, source, target, claim, thoroughness)
    found = check.run((), progress)
    return replace(found, absent=tuple(absent))


def stand_in(told: MigrationReport, output: Adapter, source: BaseModelSpec) -> Adapter:
    """An adapter with the modules that a report says its input has, and numbers of no meaning.

    Args:
        told: the report.
        output: the file; has the shapes of what no base model has.
        source: modules of the source.
    """
    after = {module.path: module for module in output.modules}
    widest = max((m.rank_in for m in told.modules), default=1)
    ranks = {m.source_path: m.rank_in for m in told.modules}
    modules: dict[str, LoraModule] = {}
    for record in (*told.modules, *told.skipped):
        path = record.source_path
        if path is None or path in modules:
            continue
        known, like = source.modules.get(path), after.get(record.path or "")
        shape = known.shape if known is not None else _shape(like)
        zero = isinstance(record, SkippedModule) and record.reason is Skip.ZERO_DELTA
        rank = min(max(ranks.get(path, widest), 1), _WIDEST)
        modules[path] = _filled(path, shape, rank, 0.0 if zero else 1.0)
    ordered = tuple(modules[path] for path in sorted(modules))
    return Adapter(ordered, output.format, origin=told.input.location)


def stand_in_of_file(told: FileReport, shared: PairReport, output: Adapter) -> Adapter:
    """The same for a file of a folder, whose report has no modules: those of the file.

    Args:
        told: the file's totals.
        shared: the pair's report.
        output: the file.
    """
    rank = min(max(told.totals.rank_in, 1), _WIDEST)
    sources = {path: module.source_path for path, module in shared.modules.items()}
    modules: dict[str, LoraModule] = {}
    for module in output.modules:
        path = sources.get(module.path, module.path)
        modules.setdefault(path, _filled(path, _shape(module), rank, 1.0))
    return Adapter(tuple(modules.values()), output.format, origin=told.input.location)


def _shape(module: LoraModule | None) -> tuple[int, ...]:
    return (1, 1) if module is None else (module.up.shape[0], *module.down.shape[1:])


def _filled(path: str, shape: tuple[int, ...], rank: int, value: float) -> LoraModule:
    number, window = np.float32(value), (1,) * (len(shape) - 2)
    down = np.broadcast_to(number, (rank, *shape[1:]))
    return LoraModule(path, down, np.broadcast_to(number, (shape[0], rank, *window)))


class _WithoutInput(AdapterCheck):
    """The check with a stand-in for the input, whose numbers nothing is compared with."""

    holds = "not-compared"

    def _check_skipped(self, reason: Skip, source_path: str, path: str, dense: DenseResult) -> None:
        if reason is not Skip.NOTHING_LEFT:
            super()._check_skipped(reason, source_path, path, dense)

    def _update(
        self, told: ModuleReport, before: LoraModule, after: LoraModule, dense: DenseResult | None
    ) -> UpdateCheck:
        size = update_norm(after)
        allowed = TOLERANCES.get(after.up.dtype.name, FLOAT32_TOLERANCE)
        projected = dense is not None and told.action is Action.PROJECT
        problems = self._seen(told, before, after, projected)
        if self.claim.folder is not None:
            return UpdateCheck(0.0, allowed, problems, size)
        problems += still_problems(told, dense if told.action is Action.PROJECT else None)
        if dense is not None and projected and not dense.undetermined:
            problems += self._span_problems(told, dense_update(after), dense, allowed)
        return UpdateCheck(0.0, allowed, problems, size)

    def _seen(
        self, told: ModuleReport, before: LoraModule, after: LoraModule, projected: bool = True
    ) -> list[str]:
        options, brief = self.options.options_for(told.path), self.claim.folder is not None
        problems = norm_problems(told, after)
        if options.dtype != "same":
            problems += dtype_problems(told, after, options.dtype, brief)
        return problems if brief else problems + record_problems(told, after, options, projected)

    def _span_problems(
        self, told: ModuleReport, ours: np.ndarray, dense: DenseResult, allowed: float
    ) -> list[str]:
        """Whether an update lies where the method puts every update."""
        options = self.options.options_for(told.path)
        if options.method not in _STAYS:
            return []
        weight = finite_matrix(self.target, told.path)
        rule = ("rank", float(dense.k_target))
        again = recompute(options.method, weight, weight, ours, rule, "own").delta_t
        off, size = float(np.linalg.norm(again - ours)), float(np.linalg.norm(ours))
        unit = max(abs(options.scale) * told.norm_in, size)
        if off <= 2 * allowed * unit:
            return []
        return [f"{off / size:.3g} of its update lies where {options.method} leaves nothing"]

    def _file_problems(self, plan: MigrationPlan, parts: Sequence[Adapter]) -> list[str]:
        told, output = self.claim.report, self.output
        gone = {s.path for s in told.skipped if s.reason is Skip.NOTHING_LEFT}
        steps = [step for step in plan.steps if step.path not in gone]
        prints = {
            "source": used_weights(self.source, [step.source_path for step in steps]),
            "target": used_weights(self.target, [step.path for step in steps]),
        }
        problems = module_problems(output, told) + alignment_problems(told.alignments, self.matched)
        problems += rank_problems(output, told, told.options.uniform_rank, self.own)
        problems += [f"report has {name}, which is no field of it" for name in self.claim.unknown]
        problems += [
            f"report has fingerprint {said[:12]}... of its {name}; found {found[:12]}..."
            for name, found in prints.items()
            if (said := getattr(told, name).fingerprint) != found
        ]
        problems += packing_problems(told, self.source, self.target)
        prints["input"] = told.input.fingerprint
        problems += provenance_problems(output, told, prints, told.counts, self.target.spec)
        problems += _beside_problems(output, told) + self._count_problems()
        return problems

    def _count_problems(self) -> list[str]:
        """Counts and totals, as far as the file and its records say them."""
        told, folder = self.claim.report, self.claim.folder
        counts, said = count(told.modules, told.skipped), told.counts
        if folder is not None:
            # Which modules of the input stay behind, no report of a folder says.
            counts, said = (
                {str(action): found.get(str(action), 0) for action in Action}
                for found in (counts, said)
            )
        problems = []
        if said != counts:
            problems.append(f"report has counts {said}; its modules are {counts}")
        if folder is None:
            return problems
        out = sum(norm**2 for norm in self.norms.values())
        rank = max((module.rank for module in self.output.modules), default=0)
        sources = len({module.source_path for module in told.modules})
        totals = folder.totals
        for name, found, slack in (
            ("moved", sources, 0.0),
            ("rank_out", rank, 0.0),
            ("energy_out", out, 20 * SLACK * out),
        ):
            if not abs(getattr(totals, name) - found) <= slack:
                problems.append(
                    f"report has totals.{name} {getattr(totals, name)}, recomputed {found:.6g}"
                )
        return problems

    def _open_ends(self, plan: MigrationPlan, pairs: Mapping[str, str]) -> None:
        self.not_checked += [
            f"the factors of {len(self.output.modules)} modules, and magnitudes of DoRA: the input "
            "is not there",
            "what the report says of the input: its modules, algorithms, ranks, norms, energies, "
            "shares, flags, fingerprint, and what of it is carried along",
            "header strings that come from the input; whether anything is left of modules that "
            "the report lists as nothing-left",
            "options that only the input's numbers tell: method, rank, rescale, scale, dtype, "
            "alpha_zero and all that change nothing here",
            "which version of prolora made it, and where its input and both base models were",
        ]


def _beside_problems(output: Adapter, told: MigrationReport) -> list[str]:
    """What lies beside the factors, by name: as the report says, and nothing else."""
    problems, left = [], {*output.extras}
    for key in told.carried:
        name = key if key in left else key.removeprefix("unet.")
        folded = key.endswith(".alpha") and output.format in SCALES_FOLDED
        if name in left:
            left.remove(name)
        elif not folded:
            problems.append(f"{key}: carried along by the report, and not in the file")
    problems += [f"{key}: the file has it, the report does not" for key in sorted(left)]
    said = {(c.path, c.part) for c in told.companions if c.path is not None}
    held = {(c.path, c.part): c.key for c in output.companions}
    problems += [
        f"{path}: carried by the report, and not in the file" for path, _ in said - {*held}
    ]
    return problems + [
        f"{key}: the file has it, the report does not"
        for place, key in held.items()
        if place not in said
    ]
