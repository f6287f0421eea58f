"""One adapter from a source to a target: match, measure, plan, run the plan, report."""

from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import PurePath
from typing import NamedTuple

import msgspec

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.fitting import Fitted
from prolora_jax.adapters.formats.header_strings import PROVENANCE, for_target
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.method import encoding
from prolora_jax.migration.execute import Moved, Results, Work, move_all
from prolora_jax.migration.fitted import fit_to
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.companions import carried, left_behind, plan_companions
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import (
    MigrationPlan,
    PlanStep,
    Skip,
    SkippedModule,
    build_plan,
    wanted_pairs,
)
from prolora_jax.plans.report import MigrationReport, ModuleReport, Party, count
from prolora_jax.plans.rules import idle_rules
from prolora_jax.subspaces.store import BasisStore


def migrate(
    adapter: Adapter,
    source: BaseModel,
    target: BaseModel,
    options: MigrationOptions | None = None,
    *,
    store: BasisStore | None = None,
    progress: Progress | None = None,
) -> tuple[Adapter, MigrationReport]:
    """Move one adapter from `source` to `target`.

    Args:
        adapter: from `load_adapter`.
        source: base model the adapter was trained on.
        target: base model it moves to.
        options: default options when None.
        store: where subspaces are found and kept; memory when None.
        progress: called with (what, done, total).

    Returns:
        The migrated adapter (in the input's format) and the report.
    """
    options = options or MigrationOptions()
    pair = BasePair(source, target, store)
    fitted = fit_to(source, adapter, options)
    plan = plan_fitted(fitted, pair, options, progress)
    return run_plan(fitted.adapter, pair, plan, progress)


def make_plan(
    adapter: Adapter, pair: BasePair, options: MigrationOptions, progress: Progress | None = None
) -> MigrationPlan:
    """Match, measure and decide; nothing is projected (`--dry-run` stops here).

    Args:
        adapter: resolved against the source's spec.
        pair: source and target.
        options: what the user asked for.
        progress: called with (what, done, total).

    Returns:
        The plan.

    Raises:
        AdapterRefused: when the adapter can only belong to another base model than the source.
    """
    fitted = fit_to(pair.source, adapter, options)
    return plan_fitted(fitted, pair, options, progress)


def plan_fitted(
    fitted: Fitted, pair: BasePair, options: MigrationOptions, progress: Progress | None = None
) -> MigrationPlan:
    """The plan for an adapter that was held against the source: `make_plan` after `fit`.

    Args:
        fitted: to the source.
        pair: source and target.
        options: what the user asked for.
        progress: called with (what, done, total).

    Returns:
        The plan.
    """
    adapter = fitted.adapter
    matching = pair.matching(options.match, options)
    measures = pair.measure(wanted_pairs(adapter, matching, options), options, progress)
    specs = pair.source.spec, pair.target.spec
    plan = build_plan(adapter, *specs, matching, measures, options)
    moved = {(step.path, step.source_path) for step in plan.steps}
    companions = plan_companions(adapter, *specs, matching.pairs, moved, options)
    paths = {*pair.target.spec.modules, *(step.path for step in plan.steps)}
    idle = idle_rules(options.rules, paths)
    flags = (*fitted.flags, *adapter.flags, *left_behind(companions), *idle)
    return replace(plan, flags=flags, companions=companions)


def run_plan(
    adapter: Adapter, pair: BasePair, plan: MigrationPlan, progress: Progress | None = None
) -> tuple[Adapter, MigrationReport]:
    """Project or copy every step of a plan and encode the result: a batch of one.

    Args:
        adapter: resolved against the source's spec.
        pair: the pair that the plan was made for.
        plan: what to do.
        progress: called with (what, done, total).

    Returns:
        The migrated adapter and the report.

    Raises:
        AdapterRefused: when no module moves, or a number does not fit the output's dtype.
    """
    header = AdapterHeader.of(adapter)
    (results,) = move_all([Work.of(adapter, plan)], pair, plan.options, progress)
    return encode(header, plan, results, pair)


class AdapterHeader(NamedTuple):
    """An adapter without its modules, and what the output needs to know of them."""

    adapter: Adapter
    fingerprint: str
    uniform: bool

    @staticmethod
    def of(adapter: Adapter) -> "AdapterHeader":
        """The header of an adapter."""
        bare = replace(adapter, modules=())
        return AdapterHeader(bare, adapter.fingerprint, len(adapter.ranks) == 1)


def encode(
    header: AdapterHeader, plan: MigrationPlan, results: Results, pair: BasePair
) -> tuple[Adapter, MigrationReport]:
    """New factors as an adapter in the input's format, and the report.

    Args:
        header: of the input.
        plan: what was done.
        results: by target path, from `execute.move_all`.
        pair: the pair that the plan was made for.

    Returns:
        The migrated adapter and the report.

    Raises:
        AdapterRefused: when no module moves, or a number does not fit the output's dtype.
    """
    adapter, moved = header.adapter, {}
    for path, result in results.items():
        if isinstance(result, AdapterRefused):
            raise result
        moved[path] = result
    steps = [step for step in plan.steps if step.path in moved]
    nothing_left = tuple(
        SkippedModule(Skip.NOTHING_LEFT, step.source_path, step.path, step.similarity)
        for step in plan.steps
        if step.path not in moved
    )
    skipped = plan.skipped + nothing_left
    if not steps:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in count((), skipped).items())
        raise AdapterRefused(
            f"{adapter.origin}: no module can move from {pair.source.spec.name} to "
            f"{pair.target.spec.name} ({reasons}). Check --source and --target; "
            "`prolora similarity` shows how close the two bases are.",
            code=Refusal.NO_MATCHING_MODULE,
        )
    width = None
    if plan.options.uniform_rank or header.uniform:
        width = max(moved[step.path].factors.rank for step in steps)
    modules = tuple(_encode(step, moved[step.path], pair, width) for step in steps)
    reports = tuple(_report(step, moved[step.path]) for step in steps)
    report = MigrationReport(
        version("prolora_jax"),
        plan.options,
        _party(pair.source, [step.source_path for step in steps]),
        _party(pair.target, [step.path for step in steps]),
        Party(adapter.origin, header.fingerprint),
        reports,
        skipped,
        plan.alignments,
        tuple(sorted(adapter.extras)),
        count(reports, skipped),
        plan.flags,
        companions=plan.companions,
    )
    title = adapter.metadata.get("modelspec.title") or PurePath(adapter.origin).stem
    metadata = for_target(adapter.metadata, pair.target.spec, merged_from=[title])
    metadata[PROVENANCE] = _provenance(report, pair.target.spec.family)
    beside = carried(plan.companions, adapter, plan.options)
    return replace(adapter, modules=modules, companions=beside, metadata=metadata), report


def _encode(step: PlanStep, moved: Moved, pair: BasePair, width: int | None) -> LoraModule:
    """Factors as a module of the output file: uniform rank `width`, torch layout."""
    factors = moved.factors
    if width is not None and width > factors.rank:
        factors = encoding.pad_rank(factors, width)
    spec = pair.target.spec.modules.get(step.path)
    # A text encoder that is passed through may not be on disk: its shape is the input's.
    shape = moved.shape if spec is None else spec.shape
    down = layout.matrix_to_down(factors.down, shape)
    up = layout.matrix_to_up(factors.up, shape)
    # With one rank everywhere alpha = rank says "scale 1" to every reader. With several ranks
    # no alpha is the only spelling that all readers agree on (formats.md 0.3, 0.4).
    return LoraModule(step.path, down, up, None if width is None else float(width))


def _report(step: PlanStep, moved: Moved) -> ModuleReport:
    ranks, norms = (moved.rank_in, moved.factors.rank), (moved.norm_in, moved.norm_out)
    found = moved.kept, moved.energies, moved.still, moved.made_from
    return ModuleReport.of(step, ranks, norms, *found, in_float32=moved.in_float32)


def _party(model: BaseModel, paths: list[str]) -> Party:
    """A base model as far as it was used: its place, and a hash over the weights of `paths`.

    Weights that it does not have (of text encoders that are passed through) do not count.
    """
    known = [path for path in sorted(paths) if path in model.spec.modules]
    digests = model.fingerprints(known)
    return Party(model.location, sha256(msgspec.json.encode(digests)).hexdigest())


def _provenance(report: MigrationReport, family: str | None) -> str:
    """One JSON string for the file's header: where it came from and how."""
    facts = {
        "version": report.prolora_version,
        "options": report.options.changed() | {"method": report.options.method},
        "input": report.input.fingerprint,
        "source": report.source.fingerprint,
        "target": report.target.fingerprint,
        "architecture": family,  # of the target, for detection.check_base
        "counts": report.counts,
    }
    return msgspec.json.encode(facts).decode()
