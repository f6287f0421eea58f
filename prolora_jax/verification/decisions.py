"""What the report says became of each module, against the plan that was made anew."""

from collections.abc import Iterable, Mapping

from prolora_jax.plans.plan import (
    Action,
    MigrationPlan,
    ModuleSimilarity,
    PlanStep,
    Skip,
    SkippedModule,
)
from prolora_jax.plans.report import DORA_KEPT, IN_FLOAT32, OWN_TENSORS, ModuleReport
from prolora_jax.verification.claim import Claim, Place, Record

_OF_FILES = frozenset({IN_FLOAT32, DORA_KEPT, OWN_TENSORS})
"""Flags that no plan knows: they are held against the file's tensors."""


def decision_problems(
    claim: Claim, plan: MigrationPlan, loose: Mapping[str, frozenset[str]]
) -> dict[Place, list[str]]:
    """What of the report's decisions is not as replanned, by place.

    Args:
        claim: the report.
        plan: made anew from names, shapes, patterns and weights.
        loose: flags that rounding decides on, by target path.
    """
    planned: dict[Place, PlanStep | SkippedModule] = {
        (found.source_path, found.path): found for found in (*plan.steps, *plan.skipped)
    }
    problems = {place: ["is there twice in the report"] for place in claim.repeated}
    for place, wanted in planned.items():
        told = claim.records.get(place)
        if told is None:
            found = [f"is missing in the report, which should say {_kind(wanted)}"]
        else:
            found = list(_differences(told, wanted, loose.get(wanted.path or "", frozenset())))
        if found:
            problems.setdefault(place, []).extend(found)
    for place in claim.records.keys() - planned.keys():
        said = _kind(claim.records[place])
        problems.setdefault(place, []).append(
            f"report says {said}, but no name, shape or weight leads there"
        )
    return problems


def _differences(
    told: Record, wanted: PlanStep | SkippedModule, loose: frozenset[str]
) -> Iterable[str]:
    nothing_left = isinstance(told, SkippedModule) and told.reason is Skip.NOTHING_LEFT
    if nothing_left and isinstance(wanted, PlanStep) and wanted.action is Action.PROJECT:
        pass  # whether nothing is left, the weights have said
    elif _kind(told) != _kind(wanted):
        yield f"report says {_kind(told)}, replanned: {_kind(wanted)}"
        return
    for name, said, expected in _similarities(told, wanted.similarity):
        if said != expected:
            yield f"report has {name} {said}, recomputed {expected}"
    if isinstance(told, ModuleReport) and isinstance(wanted, PlanStep):
        flags = {*told.flags}
        if len(flags) < len(told.flags) or (flags ^ {*wanted.flags}) - loose - _OF_FILES:
            yield f"report has flags {list(told.flags)}, recomputed {list(wanted.flags)}"


def _similarities(
    told: Record, wanted: ModuleSimilarity | None
) -> Iterable[tuple[str, float | None, float | None]]:
    for name in ModuleSimilarity.__annotations__:
        holder = told.similarity if isinstance(told, SkippedModule) else told
        yield (
            name,
            None if holder is None else getattr(holder, name),
            None if wanted is None else getattr(wanted, name),
        )


def _kind(found: Record | PlanStep) -> str:
    return f"skip ({found.reason})" if isinstance(found, SkippedModule) else str(found.action)
