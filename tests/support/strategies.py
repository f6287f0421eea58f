"""What the property tests draw: values freely, shapes from a short menu.

Each new shape costs a compilation, so shapes and ranks are test parameters (`each_case`) and
hypothesis draws the rest: spectra, relations of the two weights, scales, deficiencies, seeds.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from hypothesis import Phase, assume, settings
from hypothesis import strategies as st
from jax import Array

from prolora_jax.method.operators import (
    METHODS,
    ROTATION_MIN_COS,
    FormKind,
    Side,
    Span,
    prepare_side,
)
from prolora_jax.method.projection import apply_side

SAME_BASES = 1e-5  # law 8(i): float32 projections of given bases, relative to the input's norm
THRESHOLD_BAND = 1e-3  # cosines this close to --rotation-min-cos may fall on either side of it

laws = settings(
    max_examples=10,  # per case of the menu
    deadline=None,  # the first example of a case compiles
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # seeds do not shrink
)


class Factors(NamedTuple):
    """The update `up @ down` of a weight `(out, in)`, on the device."""

    down: Array
    up: Array


class Case(NamedTuple):
    """Everything that a compiled function depends on."""

    out: int
    into: int
    k_s: int
    k_t: int
    rank: int

    def __str__(self):
        return f"{self.out}x{self.into}-k{self.k_s},{self.k_t}-r{self.rank}"


EQUAL = (
    Case(24, 24, 7, 7, 4),  # square, below dim/2: the complements overlap
    Case(24, 24, 17, 17, 4),  # square, above dim/2: the spans overlap, some cosines are 1
    Case(24, 24, 24, 24, 4),  # nothing is cut
    Case(36, 14, 9, 9, 3),  # tall: below dim/2 on the left, above it on the right
    Case(14, 36, 14, 14, 3),  # wide, k = out: the thin complement would be empty
    Case(14, 36, 5, 5, 3),
    Case(1, 18, 1, 1, 1),
    Case(18, 1, 1, 1, 2),  # more rank columns than the matrix has rank
)
UNEQUAL = (
    Case(24, 24, 6, 15, 4),
    Case(24, 24, 20, 16, 4),
    Case(36, 14, 14, 9, 3),
    Case(14, 36, 3, 12, 3),
)
TALL = (Case(36, 14, 14, 14, 3),)


def each_case(*cases: Case):
    """Parametrise a test by cases of the menu."""
    return pytest.mark.parametrize("case", cases, ids=str)


# --- weights ----------------------------------------------------------------------------------

SPECTRA = ("decaying", "steep", "flat", "clustered", "deficient")
RELATIONS = ("equal", "near", "far")


def spectrum_of(kind: str, n: int) -> np.ndarray:
    """Descending singular values: what weights look like, and what they should not."""
    i = np.arange(n)
    return {
        "decaying": 1.0 / (1.0 + i),
        "steep": 10.0 ** (-8.0 * i / n),  # beyond what a Gram matrix resolves
        "flat": np.ones(n),
        "clustered": np.where(i < n // 2, 1.0, 0.1) * (1.0 - 1e-7 * i),
        "deficient": np.where(i < (n + 1) // 2, 1.0 / (1.0 + i), 0.0),
    }[kind]


def orthonormal(rng: np.random.Generator, dim: int, k: int) -> np.ndarray:
    """A uniformly random orthonormal frame, float64."""
    q, r = np.linalg.qr(rng.standard_normal((dim, k)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def matrix_of(rng: np.random.Generator, out: int, into: int, kind: str) -> np.ndarray:
    """A matrix with a spectrum of the given kind and random singular vectors."""
    n = min(out, into)
    return (orthonormal(rng, out, n) * spectrum_of(kind, n)) @ orthonormal(rng, into, n).T


@st.composite
def generators(draw) -> np.random.Generator:
    """A random generator from a drawn seed."""
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


@st.composite
def weights(draw, out: int, into: int) -> np.ndarray:
    """A weight of any spectrum and scale."""
    scale = 10.0 ** draw(st.integers(-4, 3))
    return scale * matrix_of(draw(generators()), out, into, draw(st.sampled_from(SPECTRA)))


# --- bases of a pair --------------------------------------------------------------------------


class Bases(NamedTuple):
    """Orthonormal float32 columns, as the package stores them."""

    u_s: np.ndarray
    v_s: np.ndarray
    u_t: np.ndarray
    v_t: np.ndarray

    @property
    def transposed(self) -> "Bases":
        """Of the transposed weights."""
        return Bases(self.v_s, self.u_s, self.v_t, self.u_t)

    @property
    def reversed(self) -> "Bases":
        """From target to source."""
        return Bases(self.u_t, self.v_t, self.u_s, self.v_s)


def frame_near(rng: np.random.Generator, frame: np.ndarray, relation: str) -> np.ndarray:
    """A square orthogonal matrix that equals the given one, is near it, or is unrelated."""
    size = {"equal": 0.0, "near": 0.3, "far": 30.0}[relation]
    dim = len(frame)
    noise = rng.standard_normal((dim, dim)) / np.sqrt(dim)
    q, r = np.linalg.qr(frame + size * noise)
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


@st.composite
def bases(draw, case: Case, relations: tuple[str, ...] = RELATIONS) -> Bases:
    """Retained bases of a pair of weights that are more or less related."""
    rng, relation = draw(generators()), draw(st.sampled_from(relations))
    u, v = orthonormal(rng, case.out, case.out), orthonormal(rng, case.into, case.into)
    u_t, v_t = frame_near(rng, u, relation), frame_near(rng, v, relation)
    columns = (u[:, : case.k_s], v[:, : case.k_s], u_t[:, : case.k_t], v_t[:, : case.k_t])
    return Bases(*(np.ascontiguousarray(c, dtype=np.float32) for c in columns))


# --- updates ----------------------------------------------------------------------------------


def factors_of(down, up) -> Factors:
    """Factors as float32 device arrays."""
    return Factors(jnp.asarray(down, jnp.float32), jnp.asarray(up, jnp.float32))


@st.composite
def updates(draw, case: Case, kinds: tuple[str, ...] = ("full", "repeated", "fresh")) -> Factors:
    """LoRA factors of any scale: of full rank, with a repeated column, or fresh (up = 0)."""
    rng, kind = draw(generators()), draw(st.sampled_from(kinds))
    up = rng.standard_normal((case.out, case.rank)) * 10.0 ** draw(st.integers(-5, 3))
    down = rng.standard_normal((case.rank, case.into)) * 10.0 ** draw(st.integers(-5, 3))
    if kind == "repeated":
        up[:, -1] = up[:, 0]
    if kind == "fresh":
        up[:] = 0.0
    return factors_of(down, up)


def mixing(rng, size: int) -> np.ndarray:
    """An invertible matrix with condition number 10."""
    stretch = np.logspace(-0.5, 0.5, size)
    return (orthonormal(rng, size, size) * stretch) @ orthonormal(rng, size, size).T


def dense(*parts: Factors) -> np.ndarray:
    """The sum of some updates as a float64 matrix; only the factors carry float32 rounding."""
    total = 0.0
    for part in parts:
        total = total + np.asarray(part.up, np.float64) @ np.asarray(part.down, np.float64)
    return np.asarray(total)


def assert_close(got, wanted, scale, tolerance, what: str = "") -> None:
    """`‖got - wanted‖_F <= tolerance * scale`."""
    error = np.linalg.norm(got - wanted)
    assert error <= tolerance * scale, f"{what}: error {error:.2e}, scale {scale:.2e}"


# --- the package, compiled once per case ------------------------------------------------------


def complement(columns: np.ndarray) -> np.ndarray:
    """Orthonormal columns of the rest of the space, float32 like the ones given."""
    whole, _ = np.linalg.qr(np.asarray(columns, np.float64), mode="complete")
    return whole[:, columns.shape[1] :].astype(np.float32)


def side(method, source, target, min_cos=ROTATION_MIN_COS, kind: FormKind | None = "thin") -> Side:
    """One prepared side of an arm, from the columns of both spans."""
    spans = [Span(columns, complement(columns)) for columns in (source, target)]
    return prepare_side(method, spans[0], spans[1], min_cos, kind)


def apply_arm(left: Side, right: Side, factors: Factors) -> tuple[Factors, ...]:
    """Parts of an arm on one update, through the batched call."""
    results = [
        apply_side(prepared.form, prepared.operator, rows[None])
        for prepared, rows in ((left, factors.up.T), (right, factors.down))
    ]
    ups, downs = (result.parts for result in results)
    return tuple(Factors(down[0], up[0].T) for up, down in zip(ups, downs, strict=True))


def all_arms(
    pair: Bases,
    factors: Factors,
    min_cos: float = ROTATION_MIN_COS,
    kind: FormKind | None = "thin",
) -> dict[str, tuple[Factors, ...]]:
    """Parts of every arm that has this form (all have the thin one)."""
    found: dict[str, tuple[Factors, ...]] = {"copy": (factors,)}
    for method in METHODS[1:]:
        if kind == "split" and method != "prolora" or kind == "dense" and method == "prolora":
            continue
        left = side(method, pair.u_s, pair.u_t, min_cos, kind)
        right = side(method, pair.v_s, pair.v_t, min_cos, kind)
        found[method] = apply_arm(left, right, factors)
    return found


def all_dense(
    pair: Bases,
    factors: Factors,
    min_cos: float = ROTATION_MIN_COS,
    kind: FormKind | None = "thin",
) -> dict[str, np.ndarray]:
    """Dense float64 result of every arm."""
    return {m: dense(*parts) for m, parts in all_arms(pair, factors, min_cos, kind).items()}


def reference_pair(bases: Bases) -> ref.Pair:
    """The same spans as the reference has them."""
    return ref.pair_of_bases(*bases)


def assume_decided(pair: ref.Pair, min_cos: float) -> None:
    """No cosine so close to the limit that rounding decides whether its plane turns."""
    for source, target in ((pair.u_s, pair.u_t), (pair.v_s, pair.v_t)):
        cosines = ref.principal_vectors(source, target)[1]
        assume(np.all(np.abs(cosines - min_cos) > THRESHOLD_BAND))
