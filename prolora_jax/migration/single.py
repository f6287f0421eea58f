"""One adapter from a source to a target: match, measure, plan, run the plan, report."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import PurePath
from typing import NamedTuple

import msgspec

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, LoraModule, StructuredModule
from prolora_jax.adapters.fitting import Fitted
from prolora_jax.adapters.formats.header_strings import PROVENANCE, as_plain_lora, for_target
from prolora_jax.adapters.formats.lora_config import HEADER_KEY, kept_fields, saved_fields_of
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.method import encoding
from prolora_jax.migration.execute import Moved, Work, move_all
from prolora_jax.migration.fitted import fit_to
from prolora_jax.migration.kinship import require_one_family
from prolora_jax.migration.magnitudes import kept_magnitudes
from prolora_jax.migration.opening import open_pair, require_opened_for
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.saved_layers import moved_layers
from prolora_jax.migration.spreading import spread_ranks
from prolora_jax.migration.token_rows import moved_rows
from prolora_jax.migration.tokens import require_movable, uses_tokens
from prolora_jax.plans.companions import OF_TOKENS, carried, left_behind, plan_companions
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import (
    MigrationPlan,
    PlanStep,
    Skip,
    SkippedModule,
    build_plan,
    wanted_pairs,
)
from prolora_jax.plans.report import (
    OWN_TENSORS,
    MigrationReport,
    ModuleReport,
    Party,
    count,
    made_plain,
)
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
    pair = open_pair(source, target, store, fused=options.fused)
    fitted = fit_to(pair.source, adapter, options)
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

    Raises:
        Strangers: the base models are language models or transformers without anything in common.
        UnlikeFamilies: they are transformers of families that share no weights.
        UsageError: the pair was opened for another `fused`.
        AdapterRefused: it has DoRA, LoHa or LoKr that stay so on rows that go to other places.
        BaseModelError: a tokenizer that is asked for is damaged.
    """
    require_opened_for(pair, options.fused)
    adapter = fitted.adapter
    if options.min_similarity > -1.0:
        require_one_family(pair.source, pair.target)
    matching = pair.matching(options.match, options, tokens=uses_tokens(adapter))
    wanted = wanted_pairs(adapter, matching, options)
    pair.require_kinship(matching.pairs, options)
    measures = pair.measure(wanted, options, progress)
    specs = pair.source.spec, pair.target.spec
    plan = build_plan(adapter, *specs, matching, measures, options)
    require_movable(adapter, plan.steps)
    moved = {(step.path, step.source_path) for step in plan.steps}
    tokens = pair.tokens.map if any(c.part in OF_TOKENS for c in adapter.companions) else None
    companions = plan_companions(adapter, *specs, matching.pairs, moved, options, tokens)
    paths = {*pair.target.spec.modules, *(step.path for step in plan.steps)}
    idle = idle_rules(options.rules, paths)
    plain = made_plain(adapter)
    flags = (*fitted.flags, *adapter.flags, *plain, *left_behind(companions), *idle)
    flags += pair.tokens.flags(plan.steps, companions)
    return replace(plan, flags=flags, companions=companions)


def run_plan(
    adapter: Adapter,
    pair: BasePair,
    plan: MigrationPlan,
    progress: Progress | None = None,
    *,
    may_be_empty: bool = False,
) -> tuple[Adapter, MigrationReport]:
    """Project or copy every step of a plan and encode the result: a batch of one.

    Args:
        adapter: resolved against the source's spec.
        pair: the pair that the plan was made for.
        plan: what to do.
        progress: called with (what, done, total).
        may_be_empty: whether it is no mistake that no module moves.

    Returns:
        The migrated adapter and the report.

    Raises:
        AdapterRefused: when no module moves, or a number does not fit the output's dtype.
    """
    header = AdapterHeader.of(adapter)
    (results,) = move_all([Work.of(adapter, plan)], pair, plan.options, progress)
    return encode(header, plan, results, pair, may_be_empty=may_be_empty)


class AdapterHeader(NamedTuple):
    """An adapter without its modules, and what the output needs to know of them."""

    adapter: Adapter
    fingerprint: str
    uniform: bool
    made: bool

    @staticmethod
    def of(adapter: Adapter) -> "AdapterHeader":
        """The header of an adapter."""
        bare = replace(adapter, modules=())
        made = any(module.made_from is not None for module in adapter.modules)
        return AdapterHeader(bare, adapter.fingerprint, len(adapter.ranks) == 1, made)


def encode(
    header: AdapterHeader,
    plan: MigrationPlan,
    results: Mapping[str, Moved | AdapterRefused],
    pair: BasePair,
    *,
    may_be_empty: bool = False,
) -> tuple[Adapter, MigrationReport]:
    """New factors as an adapter in the input's format, and the report.

    Args:
        header: of the input.
        plan: what was done.
        results: by target path, from `execute.move_all`.
        pair: the pair that the plan was made for.
        may_be_empty: as for `run_plan`.

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
    moved, over = spread_ranks(moved, steps, plan.options)
    nothing_left = tuple(
        SkippedModule(Skip.NOTHING_LEFT, step.source_path, step.path, step.similarity)
        for step in plan.steps
        if step.path not in moved
    )
    skipped = plan.skipped + nothing_left
    if not steps and not may_be_empty:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in count((), skipped).items())
        raise AdapterRefused(
            f"{adapter.origin}: no module can move from {pair.source.spec.name} to "
            f"{pair.target.spec.name} ({reasons}). Check --source and --target; "
            "`prolora similarity` shows how close the two bases are.",
            code=Refusal.NO_MATCHING_MODULE,
        )
    as_they_are = {s.path: _own(s.path, moved[s.path]) for s in steps if moved[s.path].stays}
    made_anew = [step for step in steps if step.path not in as_they_are]
    width = None
    one_rank = header.uniform and not plan.options.output_rank.spreads
    if plan.options.uniform_rank or one_rank:
        width = max((moved[step.path].factors.rank for step in made_anew), default=None)
    lyco = bool(as_they_are) or any(_keeps_magnitude(found) for found in moved.values())
    made = [_encode(step, moved[step.path], pair, width, alpha=lyco) for step in made_anew]
    modules, structured = kept_magnitudes(made, moved, made_anew, pair)
    structured += tuple(as_they_are.values())
    reports = tuple(_report(step, moved[step.path], as_they_are) for step in steps)
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
        (*plan.flags, *over),
        companions=plan.companions,
    )
    if header.made and not structured:
        adapter = replace(adapter, metadata=as_plain_lora(adapter.metadata))
    metadata = target_strings(adapter, report, pair.target.spec)
    beside = moved_rows(carried(plan.companions, adapter, plan.options), pair, plan.options)
    beside = moved_layers(beside, adapter, pair, plan.options)
    output = replace(adapter, modules=modules, structured=structured, companions=beside)
    return replace(output, metadata=metadata), report


def target_strings(
    adapter: Adapter, report: MigrationReport, target: BaseModelSpec
) -> dict[str, str]:
    """Header strings of the output.

    Args:
        adapter: the input; its modules are not looked at.
        report: of what was done with it.
        target: base model that the output is for.
    """
    title = adapter.metadata.get("modelspec.title") or PurePath(adapter.origin).stem
    metadata = for_target(adapter.metadata, target, merged_from=[title])
    metadata[PROVENANCE] = _provenance(report, target.family)
    if any(path.startswith(LM) for path in target.modules):
        # peft loads the base model by what its configuration calls it.
        said = {"base_model_name_or_path": report.target.location}
        metadata[HEADER_KEY] = json.dumps(
            said | kept_fields(adapter.metadata) | saved_fields_of(adapter.metadata)
        )
    return metadata


def with_provenance(adapter: Adapter, report: MigrationReport, target: BaseModelSpec) -> Adapter:
    """An output whose header says what its report says now.

    Args:
        adapter: the output, with all its other header strings.
        report: of what was done.
        target: base model that the output is for.
    """
    said = {PROVENANCE: _provenance(report, target.family)}
    return replace(adapter, metadata={**adapter.metadata, **said})


def _encode(
    step: PlanStep, moved: Moved, pair: BasePair, width: int | None, *, alpha: bool
) -> LoraModule:
    """Factors as a module of the output file: uniform rank `width`, torch layout.

    `alpha` says that the file has other modules than plain ones: only LyCORIS and its like read
    it, and they want an alpha everywhere.
    """
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
    said = width is not None or alpha
    return LoraModule(step.path, down, up, float(factors.rank) if said else None)


def _own(path: str, moved: Moved) -> StructuredModule:
    """The tensors of a module that nothing changes, for a path of the target."""
    assert moved.made_from is not None  # it stays
    assert moved.made_from.own is not None
    return replace(moved.made_from.own, path=path)


def _keeps_magnitude(moved: Moved) -> bool:
    return moved.made_from is not None and moved.made_from.gains is not None


def _report(step: PlanStep, moved: Moved, as_they_are: Collection[str]) -> ModuleReport:
    ranks, norms = (moved.rank_in, moved.factors.rank), (moved.norm_in, moved.norm_out)
    found = moved.kept, moved.energies, moved.still, moved.made_from
    if step.path in as_they_are:
        step = replace(step, flags=(*step.flags, OWN_TENSORS))
        return ModuleReport.of(step, ranks, norms, *found)
    return ModuleReport.of(step, ranks, norms, *found, in_float32=moved.in_float32)


def _party(model: BaseModel, paths: list[str]) -> Party:
    """A base model as far as it was used: its place, and a hash over the weights of `paths`.

    Weights that it does not have (of text encoders that are passed through) do not count.
    """
    known = [path for path in sorted(paths) if path in model.spec.modules]
    digests = model.fingerprints(known)
    digest = sha256(msgspec.json.encode(digests)).hexdigest()
    return Party(model.location, digest, dict(model.spec.packings), model.notes)


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
    if report.refined is not None:
        facts["refined"] = report.refined.facts
    return msgspec.json.encode(facts).decode()
