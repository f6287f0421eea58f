"""The methods as prepared matrices, one set per side of a module (docs/method.md 5).

A side is one axis: left the `out` axis with spans S = span(U_s), T = span(U_t), right the `in`
axis with V_s, V_t. Projections P_s, P_t are onto S and T. Every one is a linear map of rank
columns b, the same map on either side:

    along    P_t P_s b                      what lies in S, carried into T
    across   (I - P_t)(I - P_s) b           what lies outside S, cut to outside T
    full     along + across
    rotate   b + G (2 p - w) - F w,  w = (p + q) / (1 + c)      (Davis & Kahan's direct rotation)

with F, G the principal vectors of S and T, c their cosines, p = F^T b, q = G^T b. Expanded, with
orthonormal columns S and T and Z = P_t S,

    along = Z (S^T b)      across = b - (S - Z)(S^T b) - T (T^T b)      full: 2 Z in place of Z.

So each is `y = analysis^T b` and then `[b +] synthesis y`, and the matrices are prepared once per
pair of weights, in float64. Four forms do the same thing at different cost:

    thin        analysis [S T]
    complement  the same with complements S', T' of S, T: along and across change places
    split       analysis [S S'], a full basis: along = Z (S^T b), across = (S' - P_t S')(S'^T b)
    dense       one matrix, applied to b itself; S (or S') is measured for the energies only

`prepare_side` takes the cheapest. NumPy only: worker processes prepare without loading JAX.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Method = Literal["copy", "subspace", "null-space", "prolora", "prolora-full", "rotation"]
METHODS: tuple[Method, ...] = (
    "copy",
    "subspace",
    "null-space",
    "prolora",
    "prolora-full",
    "rotation",
)
FormKind = Literal["thin", "complement", "split", "dense"]

ROTATION_MIN_COS = 0.1
"""Principal pairs with a smaller cosine are left still: near 90 degrees R is ill-conditioned."""

WIDTH_STEPS = (64, 128)
"""Spans are padded with zero columns to a multiple of this (or to all), so few shapes compile.

The first for axes shorter than `LONG_AXIS`, where wasted columns weigh more.
"""

LONG_AXIS = 1024


class Span(NamedTuple):
    """A span of one axis by orthonormal columns, and its complement's where they are known."""

    inside: Float[np.ndarray, "dim k"]
    outside: Float[np.ndarray, "dim rest"] | None = None


class Summand(NamedTuple):
    """One summand of a method: `[b +] synthesis y`.

    Attributes:
        on: which measurements it takes: the `first` span's, the `rest`, `all` of them, or the
            `block` b itself (dense).
        keep: whether b is added.
    """

    on: Literal["first", "rest", "all", "block"]
    keep: bool


class Form(NamedTuple):
    """How the matrices of a `SideOperator` are applied; hashable, static under jit.

    Attributes:
        kind: see the module's docstring.
        first: columns of the first span in `analysis`, padding included.
        outside: whether the first span is the complement of S, not S.
        parts: one per summand; `prolora` has two, that are orthogonal to each other.
    """

    kind: FormKind
    first: int
    outside: bool
    parts: tuple[Summand, ...]


class SideOperator(NamedTuple):
    """The matrices of one side, float32, for rows b: `y = b @ analysis`, `x = [b +] y @ synthesis`.

    Attributes:
        analysis: `(dim, measured)`.
        synthesis: one per part, `(measured or fewer, dim)`; `(dim, dim)` for a dense part.
    """

    analysis: Float[np.ndarray, "dim measured"]
    synthesis: tuple[np.ndarray, ...]


class Side(NamedTuple):
    """One prepared side: how, with what, and how many directions `rotation` leaves still."""

    form: Form
    operator: SideOperator
    still: int = 0


class ModuleOperators(NamedTuple):
    """Both sides of a module: `left` for the rows of `up.T`, `right` for the rows of `down`."""

    left: Side
    right: Side


def effective_method(
    method: Method, k_source: int, k_target: int, shape: tuple[int, int]
) -> Method | None:
    """The method with the parts left out that are exactly zero for these ranks; None: all of it.

    A span that is empty has no part along it; one that fills its space leaves none across. So
    on a wide module with k = out, `prolora` is `subspace` (docs/method.md 7), and rank r is
    enough where 2r columns would carry rounding errors only.
    """
    along_empty = min(k_source, k_target) == 0
    across_empty = max(k_source, k_target) >= min(shape)
    if method == "subspace":
        return None if along_empty else method
    if method == "null-space":
        return None if across_empty else method
    if method == "prolora" and along_empty and across_empty:
        return None
    if method == "prolora" and (along_empty or across_empty):
        return "null-space" if along_empty else "subspace"
    return method


def prepare_side(
    method: Method,
    source: Span,
    target: Span,
    min_cos: float = ROTATION_MIN_COS,
    kind: FormKind | None = None,
) -> Side:
    """Prepare one side of a method, in float64.

    Args:
        method: any but `copy`.
        source: span of the source's singular vectors of this axis.
        target: span of the target's; it may have another number of columns.
        min_cos: for `rotation`: principal pairs with a smaller cosine stay still, and so do the
            |k_s - k_t| unpaired directions. R is orthogonal for any min_cos > 0.
        kind: the form to use; the cheapest if None.

    Returns:
        The form and its float32 matrices.

    Raises:
        ValueError: the form does not exist for this method, or needs a complement that is unknown.
    """
    candidates = [c for c in _candidates(method, source, target) if kind in (None, c.form.kind)]
    if not candidates:
        raise ValueError(f"{method}: no form {kind!r} of these spans")
    chosen = min(candidates, key=_cost)
    a, b = chosen.first.astype(np.float64), chosen.other.astype(np.float64)
    still = 0
    if method == "rotation":
        a, b, turned_a, turned_b, still = _rotation(a, b, min_cos)
        maps = {"turned": _stacked(turned_a, turned_b)}
    elif chosen.form.kind == "split":
        t = target.inside.astype(np.float64)
        maps = {"carried": _rows(t @ (t.T @ a)), "rest": _rows(b - t @ (t.T @ b))}
    else:
        z = b @ (b.T @ a)
        maps = {
            "carried": _rows(z),
            "cut": _stacked(z - a, -b),
            "full": _stacked(2.0 * z - a, -b),
        }
    synthesis = [maps[name] for name in chosen.maps]
    analysis = [_padded(a)] if chosen.measured == chosen.form.first else [_padded(a), _padded(b)]
    if chosen.form.kind == "dense":
        # What the thin form does to the unit vectors, row by row.
        kept, thin = _MAPS[chosen.maps[0]].keep, np.concatenate([_padded(a), _padded(b)], axis=1)
        synthesis = [kept * np.eye(len(a)) + thin[:, : len(synthesis[0])] @ synthesis[0]]
    whole = np.concatenate(analysis, axis=1)
    operator = SideOperator(_single(whole), tuple(_single(part) for part in synthesis))
    return Side(chosen.form, operator, still)


MapName = Literal["carried", "cut", "full", "turned", "rest"]
_MAPS: dict[MapName, Summand] = {
    "carried": Summand("first", False),  # into the second span
    "cut": Summand("all", True),  # outside the first span, cut to outside the second
    "full": Summand("all", True),
    "turned": Summand("all", True),
    "rest": Summand("rest", False),  # `cut` where the complement of the first span is measured
}


class _Candidate(NamedTuple):
    form: Form
    maps: tuple[MapName, ...]
    first: np.ndarray
    other: np.ndarray
    measured: int


def _candidates(method: Method, source: Span, target: Span) -> Iterator[_Candidate]:
    """The forms that exist; the first of the cheapest is taken."""
    spans = [(False, source.inside, target.inside)]
    if source.outside is not None and target.outside is not None:
        spans.append((True, source.outside, target.outside))
    for outside, a, b in spans:
        # Between complements along and across have changed places.
        along: MapName = "cut" if outside else "carried"
        across: MapName = "carried" if outside else "cut"
        by_method: dict[Method, tuple[MapName, ...]] = {
            "subspace": (along,),
            "null-space": (across,),
            "prolora": (along, across),
            "prolora-full": ("full",),
            "rotation": ("turned",),
        }
        maps = by_method[method]
        first, rest = _width(a), _width(b)
        parts = tuple(_MAPS[name] for name in maps)
        measured = first if maps == ("carried",) else first + rest
        thin = Form("complement" if outside else "thin", first, outside, parts)
        yield _Candidate(thin, maps, a, b, measured)
        if len(maps) == 1:
            dense = Form("dense", first, outside, (Summand("block", False),))
            yield _Candidate(dense, maps, a, b, first)
    if method == "prolora" and source.outside is not None:
        halves: tuple[MapName, ...] = ("carried", "rest")
        other = source.outside
        first = _width(source.inside)
        form = Form("split", first, False, tuple(_MAPS[name] for name in halves))
        yield _Candidate(form, halves, source.inside, other, first + _width(other))


def _cost(candidate: _Candidate) -> int:
    """Columns that a block meets on its way through: its floating-point operations / (2 dim)."""
    form, measured = candidate.form, candidate.measured
    rows = {
        "first": form.first,
        "rest": measured - form.first,
        "all": measured,
        "block": len(candidate.first),
    }
    return measured + sum(rows[part.on] for part in form.parts)


def _rotation(
    s: np.ndarray, t: np.ndarray, min_cos: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Principal vectors F, G, what R does with p = F^T b and q = G^T b, and the still ones."""
    x, cosines, y_t = np.linalg.svd(t.T @ s, full_matrices=True)
    f, g = s @ y_t.T, t @ x
    m = len(cosines)
    moves = cosines >= min_cos
    both = np.where(moves, 1.0 / (1.0 + np.clip(cosines, 0.0, 1.0)), 0.0)
    mean = (f[:, :m] + g[:, :m]) * both
    of_p, of_q = np.zeros_like(f), np.zeros_like(g)
    of_p[:, :m] = 2.0 * moves * g[:, :m] - mean
    of_q[:, :m] = -mean
    still = int(np.count_nonzero(~moves)) + abs(s.shape[1] - t.shape[1])
    return f, g, of_p, of_q, still


def _width(columns: np.ndarray) -> int:
    """Columns of a span with its padding: a multiple of a step, or all that fit."""
    dim, k = columns.shape
    step = WIDTH_STEPS[dim >= LONG_AXIS]
    return min(max(-(-k // step), 1) * step, dim)


def _padded(columns: np.ndarray) -> np.ndarray:
    """With zero columns up to `_width`: they add nothing to any formula."""
    return np.pad(columns, ((0, 0), (0, _width(columns) - columns.shape[1])))


def _rows(columns: np.ndarray) -> np.ndarray:
    return _padded(columns).T


def _stacked(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.concatenate([_rows(a), _rows(b)])


def _single(matrix: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(matrix, np.float32)
