"""The laws of method.md 6 on the arms, and the arms against the dense reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import strategies as gen
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    EQUAL,
    TALL,
    UNEQUAL,
    Bases,
    Case,
    Factors,
    assert_close,
    dense,
    each_case,
    laws,
)

from prolora_jax.method import projection
from prolora_jax.method.basis import compute_basis
from prolora_jax.method.energies import measure
from prolora_jax.method.operators import METHODS, FormKind, Method, Side, effective_method

SAME_BASES = 1e-5  # law 8(i): float32 projections of given bases, relative to the input's norm
FROM_WEIGHTS = 1e-4  # law 8(ii): bases rounded to float32, cut no nearer than CLUSTERED
CLUSTERED = 0.1  # docs/method.md 2: angle of rounding above which a span is not determined
SPAN = 2e-5  # spectral norm between two float32 projectors of dimension <= 36
ORTHOGONAL = 1e-5  # float32 inner products of unit vectors, dimension <= 36
MOVES = 0.11  # cosines above this are above --rotation-min-cos = 0.1 in any rounding
THRESHOLD_BAND = 1e-3  # cosines this close to --rotation-min-cos may fall on either side of it
EXACT = 1e-12  # float64 identities of the reference
FORMS: tuple[FormKind, ...] = ("thin", "complement", "split", "dense")
ENERGY = 1e-6  # squares of float32 norms
SMALL_ANGLE = 1e-6  # float64 knows c = 1 - 1e-15 only to an angle of 4e-8


def reference_pair(bases: Bases) -> ref.Pair:
    return ref.pair_of_bases(*bases)


def cosines(pair: ref.Pair) -> np.ndarray:
    left = ref.principal_vectors(pair.u_s, pair.u_t)[1]
    right = ref.principal_vectors(pair.v_s, pair.v_t)[1]
    return np.concatenate([left, right])


def assume_decided(pair: ref.Pair, min_cos: float) -> None:
    """No cosine so close to the limit that rounding decides whether its plane turns."""
    assume(np.all(np.abs(cosines(pair) - min_cos) > THRESHOLD_BAND))


# --- law 8: the dense reference ---------------------------------------------------------------


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_arms_equal_dense_reference(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    min_cos = data.draw(st.sampled_from((0.1, 0.1, 0.5)))
    pair, delta = reference_pair(bases), dense(factors)
    assume_decided(pair, min_cos)
    seen = set()
    for kind in FORMS:
        for method, got in gen.all_dense(bases, factors, min_cos, kind).items():
            wanted = ref.project(method, pair, delta, min_cos)
            what = f"{method}, {kind}"
            assert_close(got, wanted, np.linalg.norm(delta), SAME_BASES, what)
            seen.add(what)
    assert len(seen) == 6 + 6 + 2 + 5  # copy is counted with every form


def determined(case: Case) -> list[str]:
    """Spectra that are not clustered where the source is cut: few draws are then in vain."""
    w = {k: gen.matrix_of(np.random.default_rng(0), *case[:2], k) for k in gen.SPECTRA}
    return [kind for kind in w if ref.rounding_angle(w[kind], case.k_s) < CLUSTERED]


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_arms_from_weights_equal_dense_reference(case, data):
    rng, kind = data.draw(gen.generators()), data.draw(st.sampled_from(determined(case)))
    size = data.draw(st.sampled_from((0.0, 1e-3, 0.1, 10.0)))
    source, other = (gen.matrix_of(rng, case.out, case.into, kind) for _ in range(2))
    target = (source + size * other) * data.draw(st.sampled_from((1e-3, 1.0, 100.0)))
    assume(ref.rounding_angle(source, case.k_s) < CLUSTERED)
    assume(ref.rounding_angle(target, case.k_t) < CLUSTERED)
    pair = ref.pair_of_weights(source, target, case.k_s, case.k_t)
    assume_decided(pair, 0.1)
    factors = data.draw(gen.updates(case))
    delta, got = dense(factors), gen.all_dense(bases_of(source, target, case), factors)
    for method in ref.ARMS:
        wanted = ref.project(method, pair, delta)
        assert_close(got[method], wanted, np.linalg.norm(delta), FROM_WEIGHTS, method)


def bases_of(source, target, case) -> Bases:
    s = compute_basis(source, ("rank", case.k_s))
    t = compute_basis(target, ("rank", case.k_t))
    k_s, k_t = case.k_s, case.k_t
    return Bases(s.u[:, :k_s], s.v[:, :k_s], t.u[:, :k_t], t.v[:, :k_t])


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_reference_agrees_with_itself(case, data):
    """Two independent constructions of the direct rotation; explicit and implicit complements."""
    pair = reference_pair(data.draw(gen.bases(case)))
    for source, target in ((pair.u_s, pair.u_t), (pair.v_s, pair.v_t)):
        np.testing.assert_allclose(source.on + source.off, np.eye(len(source.on)), atol=EXACT)
        rotation = ref.rotation_by_planes(source, target)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=EXACT)
        if case.k_s == case.k_t and ref.principal_vectors(source, target)[1].min() > 0.1:
            polar = ref.rotation_by_polar(source, target)
            np.testing.assert_allclose(rotation, polar, atol=SMALL_ANGLE)


# --- law 1: the same base ---------------------------------------------------------------------


@each_case(*EQUAL)
@laws
@given(data=st.data())
def test_same_base_returns_the_update(case, data):
    bases = data.draw(gen.bases(case, ("equal",)))
    factors = data.draw(gen.updates(case))
    got, delta = gen.all_dense(bases, factors), dense(factors)
    for method in ("copy", "prolora-full", "rotation"):
        assert_close(got[method], delta, np.linalg.norm(delta), SAME_BASES)


@each_case(*EQUAL[:4])
def test_prolora_keeps_the_stated_share_of_an_isotropic_update(case):
    """Law 1: exactly f_U f_V + (1 - f_U)(1 - f_V), averaged over all unit matrices."""
    rng = np.random.default_rng(0)
    u = gen.orthonormal(rng, case.out, case.k_s).astype(np.float32)
    v = gen.orthonormal(rng, case.into, case.k_s).astype(np.float32)
    i, j = np.unravel_index(np.arange(case.out * case.into), (case.out, case.into))
    ups = np.eye(case.out, dtype=np.float32)[i][:, None, :]
    downs = np.eye(case.into, dtype=np.float32)[j][:, None, :]
    results = []
    for columns, rows in ((u, ups), (v, downs)):
        side = gen.side("prolora", columns, columns)
        results.append(projection.apply_side(side.form, side.operator, jnp.asarray(rows)).parts)
    # Rank one: the squared norm of a part is the product of its vectors' squared norms, and the
    # parts are orthogonal to each other.
    squared = [
        np.sum(np.square(up), axis=(1, 2)) * np.sum(np.square(down), axis=(1, 2))
        for up, down in zip(*results, strict=True)
    ]
    share = float(np.mean(np.sum(squared, axis=0)))
    f_u, f_v = case.k_s / case.out, case.k_s / case.into
    assert share == pytest.approx(f_u * f_v + (1 - f_u) * (1 - f_v), rel=1e-5)


# --- law 2: nothing is cut --------------------------------------------------------------------


@laws
@given(data=st.data())
def test_prolora_is_copy_at_numerical_rank_of_square_weights(data):
    case = EQUAL[2]
    rng = data.draw(gen.generators())
    source, target = (gen.matrix_of(rng, case.out, case.into, "decaying") for _ in range(2))
    bases = []
    for weight in (source, target):
        k = ref.rank_of(ref.svd(weight)[1], ("numerical",))
        basis = compute_basis(weight, ("numerical", None))
        bases += [basis.u[:, :k], basis.v[:, :k]]
    factors = data.draw(gen.updates(case))
    got, delta = gen.all_dense(Bases(*bases), factors), dense(factors)
    for method in ("prolora", "subspace"):
        assert_close(got[method], delta, np.linalg.norm(delta), SAME_BASES)
    assert_close(got["null-space"], 0.0, np.linalg.norm(delta), SAME_BASES)


@each_case(EQUAL[4], *TALL)
@laws
@given(data=st.data())
def test_prolora_is_subspace_when_the_short_side_is_whole(case, data):
    bases, factors = data.draw(gen.bases(case, ("near", "far"))), data.draw(gen.updates(case))
    got, scale = gen.all_dense(bases, factors), np.linalg.norm(dense(factors))
    assert_close(got["prolora"], got["subspace"], scale, SAME_BASES)


# --- law 3: sums, linearity, norms, transposition ----------------------------------------------


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_prolora_is_the_sum_of_two_orthogonal_parts(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    got, scale = gen.all_arms(bases, factors), np.linalg.norm(dense(factors))
    inside, outside = (dense(part) for part in got["prolora"])
    assert_close(inside, dense(*got["subspace"]), scale, SAME_BASES)
    assert_close(outside, dense(*got["null-space"]), scale, SAME_BASES)
    assert_close(inside.T @ outside, 0.0, scale**2, ORTHOGONAL)
    assert_close(inside @ outside.T, 0.0, scale**2, ORTHOGONAL)


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_every_arm_is_linear(case, data):
    """So merging adapters before or after gives the same (method.md 6, law 3)."""
    bases = data.draw(gen.bases(case))
    a, b = data.draw(gen.updates(case)), data.draw(gen.updates(case))
    weight = data.draw(st.integers(-300, 300)) / 100  # none so small that float32 underflows
    merged = Factors(jnp.vstack([a.down, b.down]), jnp.hstack([a.up, b.up * weight]))
    first, second = gen.all_dense(bases, a), gen.all_dense(bases, b)
    scale = np.linalg.norm(dense(a)) + abs(weight) * np.linalg.norm(dense(b))
    for method, got in gen.all_dense(bases, merged).items():
        assert_close(got, first[method] + weight * second[method], scale, SAME_BASES, method)


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_no_arm_amplifies(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    most = (1 + SAME_BASES) * np.linalg.norm(dense(factors))
    assert all(np.linalg.norm(got) <= most for got in gen.all_dense(bases, factors).values())


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_transposing_everything_transposes_the_result(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    turned = gen.all_dense(bases.transposed, Factors(factors.up.T, factors.down.T))
    for method, got in gen.all_dense(bases, factors).items():
        assert_close(turned[method].T, got, np.linalg.norm(dense(factors)), SAME_BASES)


# --- law 4: gauge -----------------------------------------------------------------------------


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_gauge_of_the_factors_changes_nothing(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    mix = gen.mixing(data.draw(gen.generators()), case.rank)
    down = np.linalg.solve(mix, np.asarray(factors.down, np.float64))
    mixed = gen.factors_of(down, np.asarray(factors.up, np.float64) @ mix)
    # The mixed factors are rounded to float32 again: an error relative to them, not to ΔW.
    scale = np.linalg.norm(mixed.up) * np.linalg.norm(mixed.down)
    wanted = gen.all_dense(bases, factors)
    for method, got in gen.all_dense(bases, mixed).items():
        assert_close(got, wanted[method], scale, SAME_BASES, method)


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_rotations_inside_the_spans_change_nothing(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    assume_decided(reference_pair(bases), 0.1)
    rng = data.draw(gen.generators())
    only_signs = data.draw(st.booleans())

    def turn(basis):
        k = basis.shape[1]
        inside = np.diag(rng.choice([-1.0, 1.0], k)) if only_signs else gen.orthonormal(rng, k, k)
        return (basis @ inside).astype(np.float32)

    turned = gen.all_dense(Bases(*map(turn, bases)), factors)
    for method, got in gen.all_dense(bases, factors).items():
        assert_close(turned[method], got, np.linalg.norm(dense(factors)), SAME_BASES)


# --- law 5: rotation --------------------------------------------------------------------------


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_rotation_keeps_every_singular_value(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    got = np.linalg.svd(gen.all_dense(bases, factors)["rotation"], compute_uv=False)
    wanted = np.linalg.svd(dense(factors), compute_uv=False)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=SAME_BASES * wanted[0])


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_rotation_there_and_back_returns_the_update(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    assume_decided(reference_pair(bases), 0.1)
    (there,) = gen.all_arms(bases, factors)["rotation"]
    back = gen.all_dense(bases.reversed, there)["rotation"]
    assert_close(back, dense(factors), np.linalg.norm(dense(factors)), SAME_BASES)


@each_case(*EQUAL)
@laws
@given(data=st.data())
def test_rotation_carries_the_source_span_onto_the_target_span(case, data):
    bases = data.draw(gen.bases(case, ("near",)))
    for source, target in ((bases.u_s, bases.u_t), (bases.v_s, bases.v_t)):
        wanted = ref.split_basis(target)
        assume(ref.principal_vectors(ref.split_basis(source), wanted)[1].min() > MOVES)
        moved = moved_columns(gen.side("rotation", source, target), source)
        assert ref.projector_distance(ref.split_basis(moved), wanted) <= SPAN


def moved_columns(side: Side, columns: np.ndarray) -> np.ndarray:
    rows = jnp.asarray(np.ascontiguousarray(columns.T)[None])
    (part,) = projection.apply_side(side.form, side.operator, rows).parts
    return np.asarray(part[0]).T


@pytest.mark.parametrize("kind", ["thin", "complement", "dense"])
def test_rotation_counts_what_it_leaves_still(kind: FormKind):
    identity = np.eye(6, dtype=np.float32)
    slanted = identity.copy()
    slanted[:, 1] = [0, 0.05, 0, 0, np.sqrt(1 - 0.05**2), 0]
    spans = identity[:, :4], slanted[:, [0, 1, 2]]
    side = gen.side("rotation", *spans, 0.1, kind)
    assert side.still == 2  # one pair at 87 degrees, one unpaired
    still = moved_columns(side, identity[:, [1, 3]])
    np.testing.assert_allclose(still, identity[:, [1, 3]], atol=ORTHOGONAL)
    side = gen.side("rotation", *spans, 0.01, kind)
    assert side.still == 1
    moved = moved_columns(side, identity[:, [1]])
    np.testing.assert_allclose(moved[:, 0], slanted[:, 1], atol=ORTHOGONAL)


# --- law 6: energies --------------------------------------------------------------------------


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_block_energies_add_up_and_equal_the_reference(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    delta, total = dense(factors), np.linalg.norm(dense(factors)) ** 2
    wanted = ref.block_energies(reference_pair(bases), delta)
    forms: tuple[tuple[Method, FormKind], ...] = (
        ("prolora", "thin"),
        ("prolora", "complement"),
        ("rotation", "dense"),
    )
    for method, kind in forms:
        results = []
        for source, target, rows in (
            (bases.u_s, bases.u_t, factors.up.T),
            (bases.v_s, bases.v_t, factors.down),
        ):
            side = gen.side(method, source, target, kind=kind)
            results.append(projection.apply_side(side.form, side.operator, rows[None]).grams)
        measured = measure(*jax.device_get(results))
        got = np.array(measured.energies, np.float64)[:, 0]
        # Factors may be much larger than the update they make: squares of theirs are rounded.
        scale = np.linalg.norm(factors.up) ** 2 * np.linalg.norm(factors.down) ** 2
        assert abs(got.sum() - total) <= ENERGY * scale
        np.testing.assert_allclose(got, wanted, rtol=0, atol=float(ENERGY * scale))
        after = np.linalg.norm(ref.project(method, reference_pair(bases), delta)) ** 2
        assert abs(float(measured.before[0]) - total) <= ENERGY * scale
        assert abs(float(measured.after[0]) - after) <= ENERGY * scale


# --- what is built on the arms ----------------------------------------------------------------


@each_case(Case(9, 7, 0, 4, 2), Case(9, 7, 4, 0, 2), Case(9, 7, 0, 0, 2))
@laws
@given(data=st.data())
def test_empty_spans_have_nothing_along_them(case, data):
    """The bases of a zero weight at energy=e."""
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    got, delta, pair = gen.all_dense(bases, factors), dense(factors), reference_pair(bases)
    assert not got["subspace"].any()
    for method in ref.ARMS:
        wanted = ref.project(method, pair, delta)
        assert_close(got[method], wanted, np.linalg.norm(delta), SAME_BASES, method)


@each_case(*EQUAL[1:5], *UNEQUAL, Case(9, 7, 0, 4, 2), Case(9, 7, 7, 0, 2))
@laws
@given(data=st.data())
def test_effective_method_leaves_out_only_zeros(case, data):
    bases, factors = data.draw(gen.bases(case, ("far",))), data.draw(gen.updates(case, ("full",)))
    got, scale = gen.all_dense(bases, factors), np.linalg.norm(dense(factors))
    zero = {m for m in ref.ARMS if np.linalg.norm(got[m]) <= SAME_BASES * scale}
    for method in METHODS:
        simpler = effective_method(method, case.k_s, case.k_t, case[:2])
        if method != "prolora-full":  # never a part of it alone, though it may be zero
            assert (simpler is None) == (method in zero), method
        if simpler is not None:
            assert_close(got[simpler], got[method], scale, SAME_BASES, method)
