"""Whole rows of an embedding in their migration: what they differ by from the source's is added.

peft keeps the trained rows themselves. Where the target's rows are the source's, they are carried
bit for bit; else the target's rows change by as much as the source's have.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Companion
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.companions import rows_in
from prolora_jax.plans.options import MigrationOptions


def moved_rows(
    companions: Iterable[Companion], pair: BasePair, options: MigrationOptions
) -> tuple[Companion, ...]:
    """The companions of an output, rows as the target has them.

    Args:
        companions: with the input's rows.
        pair: source and target.
        options: the scale that multiplies every update.

    Returns:
        `target + scale * (row - source)` for each row, in the input's dtype.
    """
    return tuple(_moved(c, pair, options) if c.part == "rows" else c for c in companions)


def _moved(companion: Companion, pair: BasePair, options: MigrationOptions) -> Companion:
    path, scale = companion.path, options.options_for(companion.path).scale
    count, known = pair.target.spec.modules[path].shape[0], pair.tokens.map
    kept = rows_in(companion, count, known)
    # Which rows of the source these are: the same way, with numbers instead of vectors.
    given = replace(companion, array=np.array(companion.rows))
    source = pair.source.weight(path)[rows_in(given, count, known).array]
    target = pair.target.weight(path)[list(kept.rows)]
    if scale == 1.0 and np.array_equal(source, target):
        return kept
    wide = [array.astype(np.float64) for array in (source, target, kept.array)]
    moved = wide[1] + scale * (wide[2] - wide[0])
    return replace(kept, array=moved.astype(kept.array.dtype))
