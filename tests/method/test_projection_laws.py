"""Laws 1 to 4 and 6 of method.md 6: the same weights, sums, norms, gauge, energies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import strategies as gen
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    EQUAL,
    SAME_BASES,
    TALL,
    UNEQUAL,
    Bases,
    Factors,
    assert_close,
    assume_decided,
    dense,
    each_case,
    laws,
    reference_pair,
)

from prolora_jax.method import projection
from prolora_jax.method.basis import BasisRule, compute_basis
from prolora_jax.method.energies import measure
from prolora_jax.method.operators import FormKind, Method

ORTHOGONAL = 1e-5  # float32 inner products of unit vectors, dimension <= 36
ENERGY = 1e-6  # squares of float32 norms


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
        basis = compute_basis(weight, BasisRule("numerical"))
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
