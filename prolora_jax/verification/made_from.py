"""What a report says as a whole: flags of the file, parts of a sum, how bases are packed."""

from collections.abc import Mapping, Sequence

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.detection import check_base
from prolora_jax.adapters.formats.original_layers import grown_ranks
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused
from prolora_jax.plans.companions import PlannedCompanion, left_behind
from prolora_jax.plans.plan import MigrationPlan
from prolora_jax.plans.report import MigrationReport, made_plain
from prolora_jax.plans.rules import idle_rules
from prolora_jax.verification.budget import budget_flags
from prolora_jax.verification.weights import Weights


def flag_problems(
    told: MigrationReport,
    plan: MigrationPlan,
    before: Adapter,
    models: tuple[BaseModelSpec, BaseModelSpec],
    beside: tuple[PlannedCompanion, ...],
    output: Adapter,
    of_tokens: tuple[str, ...],
) -> list[str]:
    """Flags of the file as a whole: what was assumed, what the input leaves open.

    Args:
        told: the report.
        plan: made anew.
        before: the input.
        models: source and target.
        beside: what becomes of tensors beside the pairs.
        output: the file, as it was read.
        of_tokens: flags that the tokens of both base models give it.
    """
    source, target = models
    try:
        wanted = check_base(before, source, told.options.assume_base)
    except AdapterRefused as error:
        return [str(error)]
    paths = {*target.modules, *(step.path for step in plan.steps)}
    idle = idle_rules(told.options.rules, paths)
    wanted = (*wanted, *before.flags, *made_plain(before), *left_behind(beside), *idle)
    wanted += of_tokens
    wanted += budget_flags(told, {module.path: module for module in output.modules})
    wanted += grown_ranks(output, output.format, target)
    if sorted(told.flags) == sorted(wanted):
        return []
    return [f"report has flags {list(told.flags)} of the file, recomputed {list(wanted)}"]


def part_problems(told: MigrationReport, parts: Sequence[Adapter]) -> list[str]:
    """Whether the parts of a sum are those that the report names.

    Args:
        told: the report.
        parts: as they were given.
    """
    if len(told.parts) != len(parts):
        return [f"report has {len(told.parts)} parts, given are {len(parts)}"]
    return [
        f"{one.origin}: is not the part that the report names ({part.fingerprint[:12]}...)"
        for part, one in zip(told.parts, parts, strict=True)
        if part.fingerprint != one.fingerprint
    ]


def packing_problems(told: MigrationReport, source: Weights, target: Weights) -> list[str]:
    """What the report says of how weights are packed, and is not so.

    Args:
        told: the report.
        source: base model of the input.
        target: base model of the file.
    """
    problems = []
    for side, model in (("source", source), ("target", target), ("input", None)):
        party = getattr(told, side)
        packings = {} if model is None else dict(model.spec.packings)
        notes = getattr(model, "notes", ())  # models in memory have none
        for name, said, found in (
            ("packings", party.packings, packings),
            ("notes", party.notes, notes),
        ):
            if said != found:
                problems.append(f"report has {name} {said} of its {side}; found {found}")
    return problems


def fingerprint_problems(told: MigrationReport, found: Mapping[str, str]) -> list[str]:
    """Fingerprints of the report that are not those that were found.

    Args:
        told: the report.
        found: by field of the report.
    """
    return [
        f"report has fingerprint {said[:12]}... of its {name}; found {print_[:12]}..."
        for name, print_ in found.items()
        if (said := getattr(told, name).fingerprint) != print_
    ]
