"""Reports of a folder: what all files share stands once, and each file's report holds totals.

A report of every module beside each of thousands of files would repeat one table of similarities
thousands of times. `whole_report` makes it again from both, and from the files themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.matching.alignment import Alignment
from prolora_jax.matching.matching import MatchedBy, Matching
from prolora_jax.plans.companions import PlannedCompanion
from prolora_jax.plans.nearness import twins_are_copied, weights_may_decide
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import (
    Measure,
    PlanStep,
    Skip,
    SkippedModule,
    build_plan,
    wanted_pairs,
)
from prolora_jax.plans.report import MigrationReport, ModuleReport, Party


@dataclass(frozen=True)
class PairModule:
    """A target module's source, and what is known of the two weights, if any adapter asked."""

    source_path: str
    measure: Measure | None = None


@dataclass(frozen=True)
class PairReport:
    """What depends on two base models and on options, but on no adapter.

    Attributes:
        prolora_version: that wrote it.
        source: where the source base model is, and its name.
        target: the same of the target.
        options: the options that it depends on.
        matched_by: how modules were matched.
        alignments: behind the matching.
        relation: how the two base models relate, in a sentence.
        modules: by target path: every module that has a source.
    """

    prolora_version: str
    source: str
    target: str
    options: dict[str, str]
    matched_by: MatchedBy
    alignments: tuple[Alignment, ...] = ()
    relation: str | None = None
    modules: dict[str, PairModule] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of how modules were matched; not of measures and sentences, which may be added later.

        Nor of where the base models are: they may be moved, and outputs stay what they are. Other
        weights are seen by the digest of each job.
        """
        pairs = {path: module.source_path for path, module in self.modules.items()}
        facts = (self.options, self.matched_by, self.alignments, pairs)
        return sha256(msgspec.json.encode(facts)).hexdigest()[:16]

    @property
    def matching(self) -> Matching:
        """As it was made of the two base models."""
        pairs = {path: module.source_path for path, module in self.modules.items()}
        return Matching(pairs, self.alignments, self.matched_by)

    @property
    def similarities(self) -> dict[str, tuple[float, float]]:
        """(left, right) by target path, where it is known."""
        known = {path: module.measure for path, module in self.modules.items()}
        return {p: m.sides for p, m in known.items() if m is not None and m.sides is not None}


def shared_options(options: MigrationOptions) -> dict[str, str]:
    """The options that matching and similarities depend on."""
    names = ("basis_rank", "pair_rank", "match", "match_score", "identical")
    chosen = {name: str(getattr(options, name)) for name in names}
    if options.gate == "auto":  # only then measures depend on the gate
        chosen |= {"gate": options.gate, "min_similarity": str(options.min_similarity)}
    if options.rules:
        chosen["rules"] = msgspec.json.encode(options.rules).decode()
    copied = all(own.method == "copy" for own in options.variants)
    return chosen | {"measured": "no" if copied else "yes"}


@dataclass(frozen=True)
class Totals:
    """A file in numbers; energies are squared Frobenius norms of updates."""

    modules: int
    moved: int
    rank_in: int
    rank_out: int
    energy_in: float
    energy_moved: float
    energy_out: float


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What was done with one file of a folder; fields as in `MigrationReport`.

    Attributes:
        pair: digest of the folder's `PairReport`.
        totals: of its modules.
    """

    prolora_version: str
    options: MigrationOptions
    source: Party
    target: Party
    input: Party
    pair: str
    totals: Totals
    carried: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    companions: tuple[PlannedCompanion, ...] = ()

    @staticmethod
    def of(report: MigrationReport, energy: tuple[float, float], pair: str) -> "FileReport":
        """The totals of a whole report.

        Args:
            report: of one file.
            energy: of its input, and of what moves of it.
            pair: digest of the pair's report.
        """
        moved = {m.source_path for m in report.modules}
        left = {s.source_path for s in report.skipped if s.source_path is not None} - moved
        totals = Totals(
            len(moved) + len(left),
            len(moved),
            max(m.rank_in for m in report.modules),
            max(m.rank_out for m in report.modules),
            *energy,
            sum(m.norm_out**2 for m in report.modules),
        )
        return FileReport(
            prolora_version=report.prolora_version,
            options=report.options,
            source=report.source,
            target=report.target,
            input=report.input,
            pair=pair,
            totals=totals,
            carried=report.carried,
            counts=report.counts,
            flags=report.flags,
            companions=report.companions,
        )

    def to_json(self) -> str:
        """The report as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self)).decode()


@dataclass(frozen=True, kw_only=True)
class WholeReport(MigrationReport):
    """A report of every module that was put together again; what the folder's reports say besides.

    Attributes:
        totals: as the file's own report has them.
        shared: options that the pair's report was made for.
        matched_by: how it says that modules were matched.
    """

    totals: Totals
    shared: dict[str, str]
    matched_by: MatchedBy


def whole_report(
    told: FileReport,
    shared: PairReport,
    before: Adapter,
    after: Adapter,
    source: BaseModelSpec,
    target: BaseModelSpec,
) -> WholeReport:
    """The report of every module, as it would have been written for a file alone.

    `kept` is 1 in it, and energies are missing: no file says what a rank has cost.

    Args:
        told: the file's totals.
        shared: the pair's report that it refers to.
        before: the input, resolved against `source`.
        after: the output, resolved against `target`.
        source: modules of the source.
        target: modules of the target.

    Raises:
        UsageError: the pair's report lacks a module that the input has.
    """
    options = told.options
    measures = {
        path: module.measure or Measure()
        for path, module in shared.modules.items()
        if _decides(module.measure or Measure(), options.options_for(path))
    }
    missing = [p for p in wanted_pairs(before, shared.matching, options) if p not in measures]
    if missing:
        raise UsageError(
            f"{after.origin}: found no similarity of {missing[0]} ({len(missing)} modules) in the "
            "folder's pair.report.json; expected one for each module of its input. Migrate again.",
            code=Refusal.BAD_REPORT,
        )
    plan = build_plan(before, source, target, shared.matching, measures, options)
    written = {module.path for module in after.modules}
    # As many as the report says: a module that is missing beyond that was lost.
    gone = [step for step in plan.steps if step.path not in written]
    nothing = gone[: told.counts.get(str(Skip.NOTHING_LEFT), 0)]
    kept = [step for step in plan.steps if step not in nothing]
    skipped = (
        SkippedModule(Skip.NOTHING_LEFT, step.source_path, step.path, step.similarity)
        for step in nothing
    )
    return WholeReport(
        prolora_version=told.prolora_version,
        options=told.options,
        source=told.source,
        target=told.target,
        input=told.input,
        modules=_modules(kept, before, after),
        skipped=(*plan.skipped, *skipped),
        alignments=plan.alignments,
        carried=told.carried,
        counts=told.counts,
        flags=told.flags,
        totals=told.totals,
        shared=shared.options,
        matched_by=shared.matched_by,
        companions=told.companions,
    )


def _decides(measure: Measure, options: MigrationOptions) -> bool:
    """Whether a plan can be made of it: `copy`, equal and close weights need no similarity."""
    copied = measure.identical and options.identical == "copy"
    copied = copied or (measure.close and weights_may_decide(options))
    copied = copied or (measure.twin and twins_are_copied(options))
    copied = copied or measure.by_token or measure.sliced
    return measure.similarity is not None or copied or options.method == "copy"


def _modules(steps: list[PlanStep], before: Adapter, after: Adapter) -> tuple[ModuleReport, ...]:
    inputs: Mapping[str, tuple[int, float]] = {m.path: (m.rank, m.norm) for m in before.modules}
    outputs = {m.path: (m.rank, m.norm) for m in after.modules}
    found = []
    for step in steps:
        (rank_in, norm_in), (rank, norm) = (
            inputs[step.source_path],
            outputs.get(step.path, (0, 0.0)),
        )
        found.append(ModuleReport.of(step, (rank_in, rank), (norm_in, norm)))
    return tuple(found)
