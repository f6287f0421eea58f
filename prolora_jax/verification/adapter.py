"""A migrated adapter checked against a dense recomputation from the weights.

`dense.recompute` shares no code with what made the file. Nothing that the report says is believed:
modules are matched and planned anew, every number of the report and of the header is compared, and
what nothing can be compared with is listed.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count as count_up
from typing import Any, Literal

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.plans.nearness import twins_are_copied, weights_may_decide
from prolora_jax.plans.plan import (
    Action,
    Measure,
    MigrationPlan,
    Skip,
    SkippedModule,
    build_plan,
    wanted_pairs,
)
from prolora_jax.plans.report import ModuleReport
from prolora_jax.verification.by_sight import is_possible, seen_problems
from prolora_jax.verification.claim import Claim, Place, Record, read_claim
from prolora_jax.verification.contents import cannot_compare
from prolora_jax.verification.decisions import decision_problems
from prolora_jax.verification.dense import DenseResult
from prolora_jax.verification.evidence import close_weights, packed_twins
from prolora_jax.verification.open_options import open_ends, open_options
from prolora_jax.verification.recompute import UNASKED, HeavyModule, Thoroughness, recompute_all
from prolora_jax.verification.replan import (
    CLUSTERED,
    Matched,
    copied,
    loose_flags,
    match,
    measured,
)
from prolora_jax.verification.result import ModuleCheck, VerifyReport
from prolora_jax.verification.sampling import Sample, draw, new_seed, work
from prolora_jax.verification.slices import sliced
from prolora_jax.verification.tokens import by_token, tokens_of
from prolora_jax.verification.updates import UpdateCheck, check_update
from prolora_jax.verification.weights import Weights, dense_update, identical, update_norm
from prolora_jax.verification.whole_file import File, file_problems

NOTHING_LEFT = 1e-6
"""Share of the input's norm up to which a module may be left out as `nothing-left`."""


def verify_adapter(
    output: Adapter,
    source_lora: Adapter,
    source: Weights,
    target: Weights,
    report: Mapping[str, Any],
    progress: Callable[[str, int, int], None] | None = None,
    *,
    parts: Sequence[Adapter] = (),
    unknown: Sequence[str] = (),
    thoroughness: Thoroughness = UNASKED,
) -> VerifyReport:
    """Plan every module of a migrated adapter anew, recompute it, and compare.

    Where that would take minutes, modules are drawn that are recomputed (`sampling`); of all others
    names, shapes, dtypes, ranks, norms and shares are checked.

    Args:
        output: the migrated adapter, resolved against `target`'s spec.
        source_lora: what it was made from, resolved against `source`'s spec.
        source: base model that `source_lora` was trained on.
        target: base model of `output`.
        report: the migration report as plain dicts and lists (`MigrationReport.to_dict`).
        progress: called with ("verify", done, total) after each module.
        parts: of a sum of several adapters: these, resolved, in their order.
        unknown: fields of the report's file that no report has, where `report` lacks them.
        thoroughness: how much is recomputed.

    Returns:
        A check per module, what is wrong with the file as a whole, and what was not checked.

    Raises:
        UsageError: when `report` is not a migration report.
        BaseModelError: when a weight has NaN or infinite numbers.
    """
    claim = read_claim(report, output.origin)
    claim = replace(claim, unknown=(*claim.unknown, *unknown))
    check = AdapterCheck(output, source_lora, source, target, claim, thoroughness)
    return check.run(parts, progress)


class AdapterCheck:
    """One file, with all that is needed to check it and what was found so far."""

    holds: Literal["verified", "not-compared"] = "verified"
    """Verdict about a module with which nothing is wrong."""

    def __init__(
        self,
        output: Adapter,
        source_lora: Adapter,
        source: Weights,
        target: Weights,
        claim: Claim,
        thoroughness: Thoroughness = UNASKED,
    ):
        self.thoroughness = thoroughness
        self.output, self.source_lora, self.claim = output, source_lora, claim
        self.source, self.target, self.options = source, target, claim.report.options
        self.after = {module.path: module for module in output.modules}
        self.before = {module.path: module for module in source_lora.modules}
        # Of modules that are written as they are, `output` has factors beside them.
        self.own = {module.path for module in output.structured}
        self.tokens = tokens_of(source_lora, source, target)
        self.matched: Matched = match(
            source, target, self.options, claim, self.tokens, {*self.before}
        )
        self.measures: dict[str, Measure] = {}
        self.loose: dict[str, frozenset[str]] = {}
        self.checks: dict[Place, ModuleCheck] = {}
        self.own_ranks: list[tuple[int, int]] = []
        self.whole: list[bool] = []
        self.norms: dict[str, float] = {}
        self.sigmas: dict[str, np.ndarray] = {}
        self.not_checked: list[str] = []

    def run(
        self, parts: Sequence[Adapter], progress: Callable[[str, int, int], None] | None
    ) -> VerifyReport:
        """Check everything."""
        told = self.claim.report
        pairs = wanted_pairs(self.source_lora, self.matched.matching, self.options)
        others = [m for m in told.modules if pairs.get(m.path) != m.source_path]
        total, done = len(pairs) + len(others), count_up(1)

        def step() -> None:
            if progress is not None:
                progress("verify", next(done), total)

        sample = self._check_pairs(pairs, step)
        for module in others:
            self._check_moved(module, None)
            step()
        plan = build_plan(
            self.source_lora,
            self.source.spec,
            self.target.spec,
            self.matched.matching,
            self.measures,
            self.options,
        )
        problems = self._file_problems(plan, parts)
        for place, found in decision_problems(self.claim, plan, self.loose).items():
            problems += self._add(place, found)
        self._open_ends(plan, pairs)
        order: dict[Place, int] = {(pairs[path], path): i for i, path in enumerate(pairs)}
        places = sorted(self.checks, key=lambda place: order.get(place, len(order)))
        checks = tuple(self.checks[place] for place in places)
        counts = Counter(check.verdict for check in checks)
        compared = [c.error for c in checks if c.error is not None and c.verdict != "undetermined"]
        # max() would pass over a NaN that does not come first.
        worst = float(np.max(compared)) if compared else 0.0
        return VerifyReport(
            not problems and not counts["failed"] and self.holds == "verified",
            worst,
            dict(counts),
            checks,
            tuple(sorted(problems)),
            tuple(self.not_checked),
            sample=sample,
        )

    def _check_pairs(self, pairs: Mapping[str, str], step: Callable[[], None]) -> Sample:
        """Compare two weights, and what the report says of them and of the update: every pair."""
        heavy: dict[str, HeavyModule] = {}
        for path, source_path in pairs.items():
            self.loose[path] = loose_flags(None, path, self.matched)
            measure = self._copied(source_path, path)
            if measure is None:
                heavy[path] = HeavyModule(path, source_path, self.before[source_path])
                continue
            self.measures[path] = measure
            self._check_record(self.claim.records.get((source_path, path)), None)
            step()
        costs = {path: work(self.target.spec, path) for path in heavy}
        seed = self.thoroughness.seed or new_seed()
        needed = frozenset(path for path, pair in heavy.items() if not self._is_told(pair))
        chosen = set(heavy)
        # A rank that is spread over a file is known when all of it is.
        if not (self.thoroughness.everything or self.options.output_rank.spreads):
            chosen = draw(costs, needed, self.output.fingerprint, seed)
        for path in heavy.keys() - chosen:
            self._see(heavy[path])
            step()
        todo = [pair for path, pair in heavy.items() if path in chosen]
        models, workers = (self.source, self.target), self.thoroughness.workers
        for pair, dense in recompute_all(todo, *models, self.options, workers):
            self._check_recomputed(pair, dense)
            step()
        sample = Sample(len(chosen), len(heavy), seed if len(chosen) < len(heavy) else None)
        if sample.seed is not None:
            self.not_checked.append(
                f"updates and similarities of {sample.of - sample.recomputed} modules: "
                f"{sample.words}, drawn at random (--all for all of them)"
            )
        return sample

    def _copied(self, source_path: str, path: str) -> Measure | None:
        """The measure of weights that need no decomposition; None of others."""
        if self.tokens is not None and self.tokens.moves(self.source.spec, self.target.spec, path):
            return Measure(by_token=True)
        if path in self.matched.slices:
            return Measure(sliced=True)
        found = copied(self.source, self.target, self.options, source_path, path)
        told = self.claim.records.get((source_path, path))
        if found is not None:
            return found
        places, options = (self.source, self.target, source_path, path), self.options
        if twins_are_copied(options.options_for(path)) and packed_twins(*places, told=told):
            return Measure(twin=True)
        decided = weights_may_decide(options.options_for(path))
        return Measure(close=True) if decided and close_weights(*places, told=told) else None

    def _is_told(self, pair: HeavyModule) -> bool:
        """Whether the report has a record of a pair that can be believed for a while."""
        told = self.claim.records.get((pair.source_path, pair.path))
        shape = self.target.spec.modules[pair.path].matrix_shape
        return told is not None and is_possible(told.similarity, shape)

    def _see(self, pair: HeavyModule) -> None:
        """Check what a module's names and numbers say; its similarity is taken as it is told."""
        place = pair.source_path, pair.path
        told = self.claim.records[place]
        cut = isinstance(told, ModuleReport) and CLUSTERED in told.flags
        self.measures[pair.path] = Measure(similarity=told.similarity, flags=(CLUSTERED,) * cut)
        self.loose[pair.path] |= {CLUSTERED}
        if isinstance(told, SkippedModule):
            self._note(ModuleCheck(pair.path, pair.source_path, "skip", "not-recomputed"), [])
            return
        if told.action is Action.COPY:
            self._check_moved(told, None)
            return
        after, specs = self.after.get(told.path), (self.source.spec, self.target.spec)
        problem = cannot_compare(told, pair.before, after, *specs)
        problems = [problem] if problem else []
        if after is not None and not problem:
            self.norms[told.path] = update_norm(after)
            problems = self._seen(told, pair.before, after)
        check = ModuleCheck(told.path, told.source_path, "project", "not-recomputed")
        self._note(check, problems)

    def _seen(self, told: ModuleReport, before: LoraModule, after: LoraModule) -> list[str]:
        """What of a projected module is wrong, as far as that can be seen."""
        options, brief = self.options.options_for(told.path), self.claim.folder is not None
        return seen_problems(told, before, after, options, brief)

    def _check_recomputed(self, pair: HeavyModule, dense: DenseResult) -> None:
        told = self.claim.records.get((pair.source_path, pair.path))
        self.own_ranks.append(dense.own_ranks)
        ranks = dense.k_source, dense.k_target
        short = min(self.target.spec.modules[pair.path].matrix_shape)
        self.whole.append(min(ranks) == 0 or max(ranks) >= short)
        self.loose[pair.path] = loose_flags(dense, pair.path, self.matched)
        self.measures[pair.path] = measured(None if told is None else told.similarity, dense)
        self._check_record(told, dense)

    def _check_record(self, told: Record | None, dense: DenseResult | None) -> None:
        """Compare a record with the recomputation; whether it should be there comes later."""
        if isinstance(told, ModuleReport):
            self._check_moved(told, dense)
        elif told is not None and dense is not None:
            self._check_skipped(told.reason, told.source_path or "", told.path or "", dense)

    def _check_skipped(self, reason: Skip, source_path: str, path: str, dense: DenseResult) -> None:
        problems, size = [], float(np.linalg.norm(dense_update(self.before[source_path])))
        left = float(np.linalg.norm(dense.delta_t))
        if reason is Skip.NOTHING_LEFT and left > NOTHING_LEFT * size:
            problems.append(f"skipped as {reason}, but a norm of {left:.3g} is left")
        verdict = "undetermined" if dense.undetermined else self.holds
        self._note(ModuleCheck(path, source_path, "skip", verdict), problems)
        if dense.undetermined:
            self._leave_open(path, "its similarity, and whether it moves")

    def _check_moved(self, told: ModuleReport, dense: DenseResult | None) -> None:
        """Compare one module of the output, and its numbers in the report."""
        before, after = self.before.get(told.source_path), self.after.get(told.path)
        action: Literal["project", "copy"] = told.action.value
        found = ModuleCheck(told.path, told.source_path, action, self.holds)
        problem = cannot_compare(told, before, after, self.source.spec, self.target.spec)
        if problem or before is None or after is None:
            self._note(found, [problem])
            return
        if action == "project" and dense is None:
            self._note(found, ["projected, but nothing is to be projected here"])
            return
        update = self._update(told, before, after, dense)
        undetermined = dense is not None and dense.undetermined
        self.norms[told.path] = update.norm_out
        if update.sigma is not None:
            self.sigmas[told.path] = update.sigma
        verdict = "undetermined" if undetermined else self.holds
        found = ModuleCheck(
            told.path, told.source_path, action, verdict, update.error, update.allowed
        )
        self._note(found, update.problems)
        if undetermined:
            self._leave_open(told.path, update.open or "its similarity, and whether it moves so,")

    def _placed(self, told: ModuleReport, before: LoraModule) -> LoraModule | None:
        """A module of the input with its rows and columns where they go; None where they stay."""
        measure = self.measures.get(told.path)
        if self.tokens is not None and measure is not None and measure.by_token:
            return by_token(before, self.tokens, self.target.spec.modules[told.path].shape[0])
        if measure is not None and measure.sliced:
            return sliced(before, self.matched.slices[told.path])
        return None

    def _update(
        self, told: ModuleReport, before: LoraModule, after: LoraModule, dense: DenseResult | None
    ) -> UpdateCheck:
        """Compare the factors of one module, and what the report says of them."""
        brief, options = self.claim.folder is not None, self.options.options_for(told.path)
        if told.path in self.own:
            options = replace(options, dtype="float32")  # of the factors, which are in no file
        placed = self._placed(told, before)
        shapes = [module.weight_shape[:2] for module in (placed or before, after)]
        if told.action is Action.COPY and shapes[0] != shapes[1]:
            problem = "was copied, but is no rows and columns of the source's here"
            return UpdateCheck(1.0, 0.0, [problem], 0.0)
        return check_update(told, before, after, dense, options, brief, placed)

    def _note(self, check: ModuleCheck, problems: list[str]) -> None:
        self.checks[check.source_path, check.path] = check
        self._add((check.source_path, check.path), problems)

    def _add(self, place: Place, problems: list[str]) -> list[str]:
        """Hang problems on a module's check; hand them back where there is none."""
        check = self.checks.get(place)
        if check is None or not problems:
            name = place[1] or place[0]
            return [f"{name}: {problem}" for problem in problems]
        told = (*check.problems, *problems)
        self.checks[place] = replace(check, verdict="failed", problems=told)
        return []

    def _leave_open(self, path: str, what: str) -> None:
        self.not_checked.append(
            f"{path}: {what} depends on how a cluster of equal singular values is cut"
        )

    def _file_problems(self, plan: MigrationPlan, parts: Sequence[Adapter]) -> list[str]:
        """What is wrong beyond single modules."""
        models = self.source, self.target
        given = File(self.output, self.source_lora, *models, self.claim, self.matched, self.own)
        problems, open_ = file_problems(given, plan, parts, self.norms, self.sigmas)
        self.not_checked += open_
        return problems

    def _open_ends(self, plan: MigrationPlan, pairs: Mapping[str, str]) -> None:
        """List what no weight, name or number says anything about."""
        equal = any(m.identical or m.twin for m in self.measures.values()) or (
            self.options.identical == "project"
            and any(identical(self.source, self.target, s, p) for p, s in pairs.items())
        )
        told, before, tied = self.claim.report, self.source_lora, len(self.matched.tied)
        found = open_options(told, plan, before, self.own_ranks, equal, all(self.whole))
        if not any(step.path in (self.target.spec.whole or ()) for step in plan.steps):
            found["fused"] = "no layer moves whole"
        self.not_checked += open_ends(told, tied, self.claim.folder is not None, found)
