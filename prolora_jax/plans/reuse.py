"""A plan that was made before, checked against the job at hand (`migrate --plan`)."""

from dataclasses import fields
from typing import NamedTuple

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import UNVERIFIED_TEXT_ENCODER, Action, MigrationPlan, SkippedModule

_SLACK = 1e-3
"""How far a similarity that another machine has computed may be off."""


class BadPlan(UsageError):
    """Raised when a plan was made for another job than the one at hand."""

    def __init__(self, found: str):
        super().__init__(
            f"--plan: {found}. Make a plan for this job with --dry-run --json.",
            code=Refusal.BAD_PLAN,
        )


def check_plan(
    plan: MigrationPlan,
    adapter: Adapter,
    source: BaseModelSpec,
    target: BaseModelSpec,
    options: MigrationOptions,
) -> None:
    """Refuse a plan that was made for another pair, other options or another adapter.

    Names are compared here, weights in `require_same_decisions`.

    Args:
        plan: as read; its own options are what is run.
        adapter: resolved against `source`.
        source: base model the adapter was trained on.
        target: base model it moves to.
        options: as given now; those that are not at their defaults have to be the plan's.

    Raises:
        BadPlan: with what differs.
    """
    for flag, planned, here in (
        ("--source", plan.source, source.name),
        ("--target", plan.target, target.name),
    ):
        if planned != here:
            raise BadPlan(f"found {flag} {here}; expected {planned}, which the plan was made for")
    for field in fields(options):
        given, planned = getattr(options, field.name), getattr(plan.options, field.name)
        if given not in (field.default, planned):
            flag = "--" + field.name.replace("_", "-")
            raise BadPlan(f"found {flag} {given}; expected {planned}, which the plan was made with")
    modules = {module.path for module in adapter.modules}
    planned = {s.source_path for s in (*plan.steps, *plan.skipped) if s.source_path is not None}
    if modules != planned:
        which, where = sorted(modules - planned), "the adapter has and the plan has not"
        if not which:
            which, where = sorted(planned - modules), "the plan has and the adapter has not"
        raise BadPlan(
            f"{adapter.origin}: found {len(which)} modules that {where}, first {which[0]}"
        )
    _require_whole_steps(plan)
    for step in plan.steps:
        if UNVERIFIED_TEXT_ENCODER in step.flags:
            continue
        specs = source.modules.get(step.source_path), target.modules.get(step.path)
        shapes = [spec and spec.shape for spec in specs]
        if None in shapes or shapes[0] != shapes[1]:
            raise BadPlan(
                f"{step.path}: found shapes {shapes} in source and target; expected equal"
            )


def require_same_decisions(plan: MigrationPlan, made: MigrationPlan) -> None:
    """Refuse a plan that decides otherwise than one that is made of the files at hand.

    Another fine-tune by the same name gives other similarities. And `verify` plans again: it would
    reject what comes of decisions that were edited.

    Args:
        plan: as read.
        made: for the same adapter, pair and options; it is what is to be run.

    Raises:
        BadPlan: with what differs first.
    """
    known, now = _decisions(plan), _decisions(made)
    for place in sorted(known.keys() | now.keys(), key=str):
        said, wanted = known.get(place), now.get(place)
        if said is None or wanted is None or not said.agrees(wanted):
            raise BadPlan(
                f"{place[0] or place[1]}: found {said or 'nothing'}; expected "
                f"{wanted or 'nothing'}, as these files give it"
            )


class _Decision(NamedTuple):
    what: str
    similarities: tuple[float, ...]

    def agrees(self, other: "_Decision") -> bool:
        near = [
            abs(a - b) <= _SLACK
            for a, b in zip(self.similarities, other.similarities, strict=False)
        ]
        same_number = len(self.similarities) == len(other.similarities)
        return self.what == other.what and same_number and all(near)

    def __str__(self) -> str:
        at = " and ".join(f"{phi:.4g}" for phi in self.similarities)
        return f"{self.what} at similarities {at}" if at else self.what


def _decisions(plan: MigrationPlan) -> dict[tuple[str | None, str | None], _Decision]:
    found = {}
    for item in (*plan.steps, *plan.skipped):
        what = f"skip ({item.reason})" if isinstance(item, SkippedModule) else str(item.action)
        phi = item.similarity
        sides = () if phi is None else (phi.phi_left, phi.phi_right)
        found[item.source_path, item.path] = _Decision(what, sides)
    return found


def _require_whole_steps(plan: MigrationPlan) -> None:
    seen: set[str] = set()
    for step in plan.steps:
        if step.path in seen:
            raise BadPlan(f"{step.path}: found two steps that write this module; expected one")
        seen.add(step.path)
        if step.action is not Action.COPY and step.similarity is None:
            raise BadPlan(f"{step.path}: found a projection without its similarity; expected both")
