"""Modules of DoRA that stay so: their magnitudes, recomputed on the target's weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from prolora_jax.adapters.adapter import LoraModule, StructuredModule
from prolora_jax.adapters.algorithms.magnitudes import magnitude_of, with_magnitude
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.migration.execute import Moved
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.plan import PlanStep


def kept_magnitudes(
    modules: Sequence[LoraModule],
    moved: Mapping[str, Moved],
    steps: Sequence[PlanStep],
    pair: BasePair,
) -> tuple[tuple[LoraModule, ...], tuple[StructuredModule, ...]]:
    """Plain modules, and those that get a magnitude.

    The magnitude is of the factors as they are written, rounded and cut: those are what a reader
    adds to the weight.

    Args:
        modules: of the output.
        moved: what they were made of, by target path.
        steps: one for each module.
        pair: whose target has the weights.

    Raises:
        AdapterRefused: float32 does not hold a magnitude.
    """
    plain, structured = [], []
    for module, step in zip(modules, steps, strict=True):
        made = moved[step.path].made_from
        if made is None or made.gains is None:
            plain.append(module)
            continue
        # A text encoder that is passed through is on the source's disk at least: it has the gains.
        there = step.path in pair.target.spec.modules
        model, path = (pair.target, step.path) if there else (pair.source, step.source_path)
        with np.errstate(over="ignore"):  # looked at below
            found = with_magnitude(module, made.gains, model.matrix(path))
        if not np.isfinite(magnitude_of(found.parts)).all():
            raise AdapterRefused(
                f"{step.path}: found a magnitude of DoRA that float32 does not hold; expected "
                f"finite numbers; move it with --dora fold",
                code=Refusal.NON_FINITE,
            )
        structured.append(found)
    return tuple(plain), tuple(structured)
