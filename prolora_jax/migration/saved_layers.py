"""Whole layers of peft's `modules_to_save` in their migration: what they differ by is added.

peft keeps the trained layer itself. Where the target's layer is the source's, it is carried byte
for byte; else the target's changes by as much as the source's has. A head that the source does not
have is no difference from anything, and is carried as it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Adapter, Companion
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions


def moved_layers(
    companions: Iterable[Companion], given: Adapter, pair: BasePair, options: MigrationOptions
) -> tuple[Companion, ...]:
    """The companions of an output, saved layers as the target has them.

    Args:
        companions: with the target's paths and the input's numbers.
        given: the input.
        pair: source and target.
        options: the scale that multiplies every update.

    Returns:
        `target + scale * (saved - source)` for each saved layer that the source has, computed in
        float32, in the input's dtype.

    Raises:
        AdapterRefused: a number does not fit that dtype.
    """
    places = {c.key: c.path for c in given.companions}
    return tuple(_moved(c, places, pair, options) if c.part == "saved" else c for c in companions)


def _moved(
    companion: Companion, places: Mapping[str, str], pair: BasePair, options: MigrationOptions
) -> Companion:
    place, scale = places[companion.key], options.options_for(companion.path).scale
    if place not in pair.source.spec.modules:
        return companion
    source, target = pair.source.matrix(place), pair.target.matrix(companion.path)
    saved = companion.array
    if scale == 1.0 and np.array_equal(source, target):
        return companion
    moved = saved.astype(np.float32) - source
    moved *= np.float32(scale)
    moved += target
    with np.errstate(over="ignore"):  # looked at below
        array = moved.astype(saved.dtype)
    if not np.isfinite(array.astype(np.float32)).all():
        raise AdapterRefused(
            f"{companion.key}: found numbers in the moved layer that {saved.dtype} cannot hold; "
            f"expected finite ones; leave it behind (--exclude '{companion.path}')",
            code=Refusal.NON_FINITE,
        )
    return replace(companion, array=array)
