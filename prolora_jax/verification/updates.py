"""The update and the numbers of one moved module, against what they should be."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.plans.options import MigrationOptions, output_rank
from prolora_jax.plans.plan import Action
from prolora_jax.plans.report import IN_FLOAT32, ModuleReport
from prolora_jax.verification.dense import DenseResult
from prolora_jax.verification.dtypes import needs_float32
from prolora_jax.verification.weights import (
    dense_update,
    shape_of,
    update_distance,
    update_norm,
    update_values,
    used_columns,
)

Matrix = Float[np.ndarray, "out in"]

TOLERANCES = {"float16": 1e-3, "bfloat16": 8e-3}
"""Largest error relative to the input's norm, by the output's dtype (docs/method.md 7)."""

FLOAT32_TOLERANCE = 1e-4
"""The same for float32 and wider, and for norms and shares in the report."""

CANCELLED = 1e-6
"""Norms come from float32 products of factors: this share of the factors' own norms is rounding."""

ENERGY_SLACK = 1e-6
"""`--rank energy=e` is decided on float32 singular values: at a tie it may keep a column less."""


FACTORED_SLACK = 1e-6
"""Shares that factors hold are computed in float64, on another machine perhaps."""


class UpdateCheck(NamedTuple):
    """What came of a module's numbers.

    Attributes:
        error: see `ModuleCheck`.
        allowed: largest error that the dtype explains.
        problems: what is wrong.
        norm_out: of the update as it should be, before it is rounded to the output's dtype.
        open: what could not be compared, of an update that no cut decides; empty for others.
        sigma: singular values of the update as it should be before it is cut, scale included.
    """

    error: float
    allowed: float
    problems: list[str]
    norm_out: float
    open: str = ""
    sigma: np.ndarray | None = None


class CutUpdate(NamedTuple):
    """What the best approximation of the rank asked for keeps of an update.

    Attributes:
        rank: asked for; None where the numbers decide.
        kept: norm of what the approximation keeps.
        tail: norm of what it misses.
        sigma: singular values; None where nothing is cut.
    """

    rank: int | None
    kept: float
    tail: float
    sigma: np.ndarray | None = None


def check_update(
    told: ModuleReport,
    before: LoraModule,
    after: LoraModule,
    dense: DenseResult | None,
    options: MigrationOptions,
    brief: bool,
    moved_rows: LoraModule | None = None,
) -> UpdateCheck:
    """Compare one module of the output with the recomputation, and the report's numbers with both.

    Args:
        told: its record.
        before: the input's module.
        after: the output's.
        dense: the recomputation; None where the update is copied without one.
        options: as the report has them.
        brief: the record was made of totals: it has no numbers but norms and ranks of the files.
        moved_rows: the input's module with its rows where their tokens are, if that is what was
            to be copied; else that is the input's module itself.
    """
    moved = dense is not None and told.action is Action.PROJECT
    # A copy is compared by its factors: of large layers the matrices alone take half a gigabyte.
    reference = dense.delta_t if dense is not None and moved else moved_rows or before
    if output_rank(options.rank).spreads:  # which rank it should have, all modules say together
        options = replace(options, rank=str(max(told.rank_out, 1)))
    cut = cut_update(reference, options.rank, before.rank)
    dtype = dtype_out(before, options)
    allowed = TOLERANCES.get(dtype, FLOAT32_TOLERANCE)
    # Of what is there to be kept: rows and columns that the target has not are no loss.
    size = update_norm(before if moved or moved_rows is None else moved_rows)
    problems = dtype_problems(told, after, dtype, brief)
    if cut.rank is not None and used_columns(after) > cut.rank:
        problems.append(f"has rank {used_columns(after)}, asked for was {cut.rank}")
    factor = options.scale
    free = dense is not None and moved and dense.undetermined
    if free and dense is not None:
        error, norm_out, unknown = _compare_free(after, cut, dense, before, options)
    else:
        if options.rescale == "norm" and cut.kept > 0:
            factor *= size / cut.kept
        apart = _distance(after, reference, factor)
        error, norm_out, unknown = _compare(apart, cut, factor, size), abs(factor) * cut.kept, ""
    if not error <= allowed:  # "not <=", so that NaN fails
        problems.append(f"differs from the recomputed update by {error:.3g} > {allowed:.3g}")
    slack = (allowed if brief or free else FLOAT32_TOLERANCE) * abs(factor) * size
    slack += CANCELLED * abs(options.scale) * _factors_norm(before)
    problems += _other("norm_out", told.norm_out, norm_out, slack)
    problems += input_problems(told, before, brief)
    if not brief:
        problems += _rank_problems(told, before, after, cut, options)
        problems += _share_problems(told, cut, dense if moved else None, options, size)
    sigma = None if cut.sigma is None or free else abs(factor) * cut.sigma
    return UpdateCheck(error, allowed, problems, norm_out, unknown, sigma)


def dtype_problems(told: ModuleReport, after: LoraModule, dtype: str, brief: bool) -> list[str]:
    """What is wrong with the dtype of a module, and with the flag of one that is in float32.

    Args:
        told: its record.
        after: the output's module.
        dtype: asked for.
        brief: the record was made of totals, which have no flags.
    """
    problems = [
        f"holds {factor.dtype.name}, asked for was {dtype}"
        for factor in (after.down, after.up)
        if factor.dtype.name != dtype
        and not (factor.dtype == np.float32 and needs_float32(after, dtype))
    ][:1]
    wide = after.up.dtype == np.float32 and dtype != "float32"
    if not brief and wide != (IN_FLOAT32 in told.flags):
        said = "has" if IN_FLOAT32 in told.flags else "lacks"
        problems.append(f"report {said} the flag {IN_FLOAT32}; the file holds {after.up.dtype}")
    return problems


def cut_update(update: Matrix | LoraModule, wanted: str, rank_in: int) -> CutUpdate:
    """What the rank asked for keeps of an update, and what it misses.

    Args:
        update: as the arm gives it, dense; or the factors that it is copied from.
        wanted: the option `rank`.
        rank_in: of the input.
    """
    kind, value = output_rank(wanted)
    dense = isinstance(update, np.ndarray)
    if kind == "exact":
        size = float(np.linalg.norm(update)) if dense else update_norm(update)
        return CutUpdate(None, size, 0.0)
    s = np.linalg.svd(update, compute_uv=False) if dense else update_values(update)
    if kind == "energy" and value is not None:
        enough = np.cumsum(s**2) >= (value - ENERGY_SLACK) * np.sum(s**2)
        rank = int(np.argmax(enough)) + 1
    else:
        rank = rank_in if value is None else int(value)
    known = None if kind == "energy" else rank
    kept, tail = float(np.linalg.norm(s[:rank])), float(np.linalg.norm(s[rank:]))
    return CutUpdate(known, kept, tail, s)


def _distance(ours: LoraModule, reference: Matrix | LoraModule, factor: float) -> float:
    """Norm of what an update differs by from `factor` times what it should be."""
    if isinstance(reference, np.ndarray):
        return float(np.linalg.norm(dense_update(ours) - factor * reference))
    return update_distance(ours, reference, factor)


def _compare(difference: float, cut: CutUpdate, factor: float, size: float) -> float:
    """Error relative to the norm of the input in its places, before any scaling.

    The best approximation of rank r misses exactly the tail, and what it misses is orthogonal
    to it: squares of the tail and of any other error add up, so the tail is taken off.
    """
    unit = abs(factor) * size
    if unit == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    # maximum() and not max(): it hands on NaN
    return float(np.sqrt(np.maximum((difference / unit) ** 2 - (cut.tail / size) ** 2, 0.0)))


def _compare_free(
    after: LoraModule,
    cut: CutUpdate,
    dense: DenseResult,
    before: LoraModule,
    options: MigrationOptions,
) -> tuple[float, float, str]:
    """Error of what all cuts of a cluster have in common, the file's norm, and what stays open.

    No arm makes an update longer, and `rotation` keeps every singular value: both hold for any cut.
    """
    ours, delta = dense_update(after), dense_update(before)
    size, found = float(np.linalg.norm(delta)), float(np.linalg.norm(ours))
    unit = abs(options.scale) * size
    if unit == 0.0:
        return (0.0 if found == 0.0 else float("inf")), found, "nothing of it"
    if not np.isfinite(found):
        return float("nan"), found, "nothing of it"
    if options.rescale == "norm":
        return abs(found / unit - 1.0), found, "the direction of its update, but not its norm,"
    if options.method == "rotation" and cut.tail == 0.0:
        a, b = (np.linalg.svd(x, compute_uv=False) for x in (ours, options.scale * delta))
        error = float(np.linalg.norm(a - b)) / unit
        return error, found, "the directions of its update, but not its singular values,"
    error = max(found / unit - 1.0, 0.0)
    if cut.tail > FLOAT32_TOLERANCE * size or dense.certain is None or options.method == "rotation":
        return error, found, "its update, but for the norm that none exceeds,"
    certain = dense.certain
    difference = certain.part(ours / options.scale - dense.delta_t)
    error = max(error, (float(np.linalg.norm(difference)) - certain.blur) / size)
    share = float(
        np.linalg.norm(certain.part(dense.delta_t)) / max(np.linalg.norm(dense.delta_t), 1e-300)
    )
    known = max(share**2 - certain.blur / size, 0.0)
    return error, found, f"{1.0 - known:.0%} of its update"


def input_problems(told: ModuleReport, before: LoraModule, brief: bool) -> list[str]:
    """What the report says of the input's module, and is not so.

    Args:
        told: its record.
        before: the input's module.
        brief: the record was made of totals.
    """
    size = update_norm(before)
    unit = FLOAT32_TOLERANCE * size + CANCELLED * _factors_norm(before)
    problems = _other("norm_in", told.norm_in, size, unit)
    problems += _other("rank_in", told.rank_in, before.rank, 0)
    return problems if brief else problems + _origin_problems(told, before)


def _origin_problems(told: ModuleReport, before: LoraModule) -> list[str]:
    """Which algorithm the update was of, and what its factors hold."""
    made = before.made_from
    algorithm, share = (None, None) if made is None else (made.algorithm, made.kept)
    problems = []
    if told.algorithm != algorithm:
        problems.append(f"report has algorithm {told.algorithm}, the input has {algorithm}")
    if (told.factored is None) != (share is None):
        problems.append(f"report has factored {told.factored}, recomputed {share}")
    elif told.factored is not None and share is not None:
        problems += _other("factored", told.factored, share, FACTORED_SLACK)
    return problems


def _rank_problems(
    told: ModuleReport,
    before: LoraModule,
    after: LoraModule,
    cut: CutUpdate,
    options: MigrationOptions,
) -> list[str]:
    """The rank in the report: columns that are not zero; of a copy, as many as were asked for."""
    expected = max(used_columns(after), 1)
    if told.action is Action.COPY and options.rank in ("exact", "source"):
        expected = before.rank
    elif told.action is Action.COPY and cut.rank is not None:
        expected = min(cut.rank, before.rank, *shape_of(before))
    return _other("rank_out", told.rank_out, expected, 0)


def _share_problems(
    told: ModuleReport,
    cut: CutUpdate,
    dense: DenseResult | None,
    options: MigrationOptions,
    size: float,
) -> list[str]:
    """`kept`, the energies of the four blocks, and the directions that were left still."""
    problems, free = [], dense is not None and dense.undetermined
    if cut.sigma is None or (options.rank == "source" and dense is None):
        problems += _other("kept", told.kept, 1.0, ENERGY_SLACK)
    else:
        squares = np.cumsum(cut.sigma**2)
        whole = float(squares[-1])
        rank = min(max(told.rank_out, 1), len(squares))
        kept = float(squares[rank - 1]) / whole if whole > 0.0 else 1.0
        slack = FLOAT32_TOLERANCE * max(1.0, size**2 / whole if whole > 0.0 else 1.0)
        problems += _other("kept", told.kept, 0.5 if free else kept, 0.5 if free else slack)
        kind, value = output_rank(options.rank)
        if kind == "energy" and value is not None and whole > 0.0 and not free:
            one_less = float(squares[rank - 2]) / whole if rank > 1 else 0.0
            if kept < value - slack or one_less > value + slack:
                problems.append(f"report has rank_out {told.rank_out} for a share of {value}")
    wanted = None if dense is None else dense.energies
    if (wanted is None) != (told.energies is None):
        problems.append(f"report has energies {told.energies}, recomputed {wanted}")
    elif wanted is not None and told.energies is not None:
        loose = dense is not None and dense.source_undetermined
        off = [abs(a - b) for a, b in zip(told.energies, wanted, strict=True)]
        shares = [0.0 <= a <= 1.0 for a in told.energies]
        whole = abs(sum(told.energies) - sum(wanted)) <= FLOAT32_TOLERANCE
        if not whole or not (all(shares) if loose else max(off) <= FLOAT32_TOLERANCE):
            problems.append(f"report has energies {told.energies}, recomputed {wanted}")
    return problems + still_problems(told, dense)


def still_problems(told: ModuleReport, dense: DenseResult | None) -> list[str]:
    """The directions that `rotation` left still; of a free cut within all that is possible.

    Args:
        told: the record.
        dense: the recomputation; None where nothing is projected.
    """
    problems = []
    for side in ("left", "right"):
        said = getattr(told, f"still_{side}")
        wanted = None if dense is None else getattr(dense, f"still_{side}")
        if wanted is not None and dense is not None and dense.undetermined:
            ranks = dense.k_source, dense.k_target
            wanted = (max(ranks) - min(ranks), max(ranks))
        if wanted is None or said is None:
            right = wanted is said
        else:
            low, high = wanted
            right = low <= said <= high
        if not right:
            problems.append(f"report has still_{side} {said}, recomputed {wanted and wanted[0]}")
    return problems


def _other(name: str, said: float, expected: float, slack: float) -> list[str]:
    """A problem, if a number of the report is not what it should be; NaN never is."""
    if abs(said - expected) <= slack:
        return []
    return [f"report has {name} {said:.6g}, recomputed {expected:.6g}"]


def dtype_out(before: LoraModule, options: MigrationOptions) -> str:
    """The dtype that a module's factors should have."""
    if options.dtype != "same":
        return options.dtype
    return "float32" if before.dtype == np.float64 else before.dtype.name


def _factors_norm(module: LoraModule) -> float:
    up, down = (np.linalg.norm(f.astype(np.float64)) for f in (module.up, module.down))
    return abs(module.scale) * float(up * down)
