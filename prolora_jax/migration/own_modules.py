"""Modules of LoHa and LoKr that nothing changes: written as they are, as `--format same` asks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.formats.own_keys import HOLD_OWN
from prolora_jax.migration.execute import Moved
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action, PlanStep


def own_modules(
    steps: Sequence[PlanStep], moved: Mapping[str, Moved], options: MigrationOptions, format: str
) -> dict[str, StructuredModule]:
    """The modules that can be written as they are, by target path.

    They are copied, and no option asks for another rank, scale or dtype. An alpha of 0, on whose
    meaning programs do not agree, is not written again.

    Args:
        steps: of the output.
        moved: what came of them.
        options: of the migration.
        format: of the input, and so of the output.
    """
    if format not in HOLD_OWN or options.uniform_rank:
        return {}
    found = {}
    for step in steps:
        made, asked = moved[step.path].made_from, options.options_for(step.path)
        plain = asked.rank == "exact" and asked.scale == 1.0 and asked.dtype == "same"
        if step.action is not Action.COPY or not plain or made is None or made.own is None:
            continue
        if made.own.alpha != 0.0:
            found[step.path] = replace(made.own, path=step.path)
    return found
