"""Vectors beside the pairs, checked against the input: each is accounted for, none is changed."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from prolora_jax.adapters.adapter import Adapter, Companion
from prolora_jax.matching.tokens import TokenMap
from prolora_jax.plans.companions import PlannedCompanion
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.saved_layers import saved_layer_holds
from prolora_jax.verification.tokens import whole_rows_hold
from prolora_jax.verification.weights import Weights

SLACK = 1e-5
"""Relative: a scaled vector is rounded to float32 once, to a file's dtype at most once more."""


def companion_problems(
    told: tuple[PlannedCompanion, ...],
    planned: tuple[PlannedCompanion, ...],
    before: Adapter,
    after: Adapter,
    options: MigrationOptions,
    models: tuple[Weights, Weights],
    tokens: TokenMap | None = None,
) -> Iterator[str]:
    """What is wrong with the tensors beside the pairs.

    Args:
        told: the report's records of them.
        planned: what they should be, planned anew.
        before: the input, resolved.
        after: the output, resolved.
        options: the scale that multiplies every update.
        models: source and target, whose rows tell what rows of an embedding differ by.
        tokens: of both, where they are known.

    Yields:
        One sentence for each tensor that is missing, changed, made up or told wrongly.
    """
    wanted = {(c.key, c.path): _decided(c) for c in planned}
    for record in told:
        place = record.key, record.path
        if wanted.pop(place, None) != _decided(record):
            yield f"{record.key}: report says {record.fate}, which is not what becomes of it"
    for key, path in wanted:
        yield f"{key}: should go to {path or 'nowhere'}, and the report has no such record"
    given = {c.key: c for c in before.companions}
    found = {_place(c.path, c.part, c.key): c for c in after.companions}
    for key in sorted(given.keys() - {c.key for c in told}):
        yield f"{key}: of the input, and the report does not have it"
    expected = Counter(_place(c.path, c.part, c.key) for c in told if c.path is not None)
    for place in sorted(found.keys() - expected.keys()):
        yield f"{found[place].key}: the file has it, the report does not"
    total = sum(_energy(c) for c in given.values()) + sum(m.norm**2 for m in before.modules)
    for record in told:
        own = given.get(record.key)
        if own is None:
            yield f"{record.key}: of the report, and the input does not have it"
            continue
        share = _energy(own) / total if total > 0 else 0.0
        if not abs(record.share - share) <= SLACK:
            yield f"{record.key}: report has a share of {record.share}, recomputed {share:.6g}"
        if record.path is None:
            continue
        written = found.get(_place(record.path, record.part, record.key))
        if written is None:
            yield f"{record.path}: carried by the report, and not in the file"
        elif own.part == "rows":
            scale = options.options_for(record.path).scale
            if not whole_rows_hold(written, own, scale, models, tokens):
                yield f"{record.path}: its rows differ from the target's not as the input's did"
        elif own.part == "saved":
            scale = options.options_for(record.path).scale
            if not saved_layer_holds(written, own, scale, models):
                yield f"{record.path}: differs from the target's layer not as the input's did"
        elif not _equal(written.array, own.array, options.options_for(record.path).scale):
            yield f"{record.path}: carried by the report, but not as in the input"


def _place(path: str, part: str, key: str) -> tuple[str, str]:
    """Where a tensor is; a saved layer may have a weight and a bias."""
    return path, f"{part} {key.rpartition('.')[2]}" if part == "saved" else part


def _decided(record: PlannedCompanion) -> tuple[str, str, str]:
    return record.part, record.source_path, str(record.fate)


def _energy(companion: Companion) -> float:
    if companion.part not in {"bias", "weight"}:
        return 0.0
    return float(np.sum(np.square(companion.array, dtype=np.float64)))


def _equal(written: np.ndarray, own: np.ndarray, scale: float) -> bool:
    if written.shape != own.shape:
        return False
    wanted = own.astype(np.float64) * scale
    difference = np.linalg.norm(written.astype(np.float64) - wanted)
    return bool(difference <= SLACK * np.linalg.norm(wanted))
