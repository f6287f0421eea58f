"""Forms of an operator, and what is made of projected columns: singular form, cast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import strategies as gen
from strategies import Bases, Case, Factors, assert_close, dense

from prolora_jax.method import encoding
from prolora_jax.method.operators import METHODS, Span, prepare_side
from prolora_jax.method.projection import apply_side, to_file_factors
from prolora_jax.method.singular import gauge, union

SAME_BASES = 1e-5  # law 8(i): float32 projections of given bases, relative to the input's norm


@pytest.mark.parametrize("method", METHODS[1:])
def test_compressed_is_the_singular_form(method):
    """Ranks padded with zero rows, several adapters in one call."""
    rng, case = np.random.default_rng(1), Case(24, 20, 7, 9, 4)
    frames = [gen.orthonormal(rng, dim, dim).astype(np.float32) for dim in (24, 20, 24, 20)]
    ks = (case.k_s, case.k_s, case.k_t, case.k_t)
    bases = Bases(*(frame[:, :k] for frame, k in zip(frames, ks, strict=True)))
    ups, downs = np.zeros((3, 4, 24), np.float32), np.zeros((3, 4, 20), np.float32)
    for i, rank in enumerate((2, 4, 3)):
        ups[i, :rank], downs[i, :rank] = rng.normal(size=(rank, 24)), rng.normal(size=(rank, 20))
    sides = []
    for source, target, rows in ((bases.u_s, bases.u_t, ups), (bases.v_s, bases.v_t, downs)):
        side = gen.side(method, source, target, kind=None)
        with jax.enable_x64(True):
            sides.append(apply_side(side.form, side.operator, jnp.asarray(rows), True))
    left, right = sides
    grams = zip(left.grams.parts, right.grams.parts, strict=True)
    form = union([gauge(np.asarray(a), np.asarray(b)) for a, b in grams])
    mixing = (form.up.astype(np.float32), form.down.astype(np.float32))
    got = to_file_factors(left.parts, right.parts, mixing, jnp.ones(3), "float32")
    for i in range(3):
        delta = ups[i].T.astype(np.float64) @ downs[i]
        wanted, scale = ref.project(method, ref.pair_of_bases(*bases), delta), np.linalg.norm(delta)
        factors = Factors(got.down[i], got.up[i])
        assert_close(dense(factors), wanted, scale, SAME_BASES)
        sigma = np.linalg.svd(wanted, compute_uv=False)[: form.sigma.shape[1]]
        np.testing.assert_allclose(form.sigma[i], sigma, rtol=0, atol=float(SAME_BASES * scale))
        assert_close(factors.up.T @ factors.up, np.diag(sigma), scale, SAME_BASES)


def test_the_cheapest_form_is_taken():
    """Thin for narrow spans, complements for wide ones, a full basis in between."""
    frame = np.eye(1280, dtype=np.float32)

    def form(method, k, known=True):
        span = Span(frame[:, :k], frame[:, k:] if known else None)
        return prepare_side(method, span, span).form.kind

    assert [form("prolora", k) for k in (256, 640, 1152)] == ["thin", "split", "complement"]
    assert [form("prolora", k, known=False) for k in (256, 640, 1152)] == ["thin"] * 3
    assert [form("rotation", k) for k in (256, 640, 1152)] == ["thin", "dense", "complement"]
    with pytest.raises(ValueError, match="split"):
        prepare_side("rotation", Span(frame[:, :4]), Span(frame[:, :4]), kind="split")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_stored_columns_are_those_of_the_host(dtype):
    """16 bits get columns whose norms are even, by powers of two, which round nothing."""
    rng = np.random.default_rng(2)
    sizes = 10.0 ** rng.integers(-4, 4, size=(2, 5, 1))
    up, down = rng.normal(size=(2, 5, 24)) * sizes, rng.normal(size=(2, 5, 20)) / sizes**2
    up[1, 3] = 0.0
    left, right = (jnp.asarray(a[:, :4], jnp.float32) for a in (up, down))
    stored = to_file_factors((left,), (right,), None, jnp.asarray([1.0, 0.5], jnp.float32), dtype)
    assert stored.finite.all()
    assert stored.used.tolist() == [[True] * 4, [True, True, True, False]]
    for i, scale in enumerate((1.0, 0.5)):
        wide = down[i, :4].astype(np.float32), up[i, :4].astype(np.float32) * np.float32(scale)
        norms = [np.linalg.norm(a.astype(np.float64), axis=1) for a in wide]
        ratio = np.divide(*norms, out=np.ones(4), where=norms[1] > 0)
        power = np.rint(np.log2(ratio) / 2).astype(int)[:, None] * (dtype != "float32")
        wanted = np.ldexp(wide[0], -power), np.ldexp(wide[1], power).T
        for got, expected in zip((stored.down[i], stored.up[i]), wanted, strict=True):
            rounded = expected.astype(encoding.DTYPES[dtype]).astype(np.float32)
            np.testing.assert_array_equal(np.asarray(got).astype(np.float32), rounded)


def test_numbers_too_large_for_the_dtype_are_seen():
    sides = (jnp.full((2, 1, 3), 1e6),), (jnp.full((2, 1, 2), 1e6),)
    scale = jnp.asarray([1.0, 1e-12], jnp.float32)
    assert to_file_factors(*sides, None, scale, "float16").finite.tolist() == [False, True]
    assert to_file_factors(*sides, None, scale, "bfloat16").finite.all()
