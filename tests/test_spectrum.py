"""Both routes to the singular form, on updates that are hard for one or the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prolora_jax import lora
from prolora_jax.lora import Factors

# Share of ||dW|| in the update, and of sigma_1 in a singular value. The float64 route is at the
# rounding of its float32 output, QR and SVD in float32 some tens of it.
UPDATE = {True: 3e-7, False: 3e-6}


def random(out: int, width: int, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rank, width)), rng.normal(size=(out, rank))


def plain() -> tuple[np.ndarray, np.ndarray]:
    return random(40, 60, 8)


def lopsided_gauge() -> tuple[np.ndarray, np.ndarray]:
    """Columns whose scale sits in `up` or in `down` by up to 1e12: the update is `plain`'s."""
    down, up = plain()
    scale = np.logspace(-6, 6, 8)
    return down / scale[:, None], up * scale


def decaying() -> tuple[np.ndarray, np.ndarray]:
    """Singular values over six decades."""
    down, up = plain()
    return down, np.linalg.qr(up)[0] * np.logspace(0, -6, 8)


def repeated_column() -> tuple[np.ndarray, np.ndarray]:
    """Rank 7 of 8."""
    down, up = plain()
    up[:, 3] = up[:, 5]
    return down, up


def padded() -> tuple[np.ndarray, np.ndarray]:
    down, up = plain()
    down[5:], up[:, 5:] = 0.0, 0.0
    return down, up


def more_columns_than_rows() -> tuple[np.ndarray, np.ndarray]:
    return random(5, 60, 8)


def zero() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((8, 60)), np.zeros((40, 8))


CASES = [plain, lopsided_gauge, decaying, repeated_column, padded, more_columns_than_rows, zero]


@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_singular_form(case, wide: bool):
    down, up = (a.astype(np.float32) for a in case())
    dense = up.astype(np.float64) @ down.astype(np.float64)
    expected = np.linalg.svd(dense, compute_uv=False)
    with jax.enable_x64(wide):
        found = jax.jit(lora.spectrum)(Factors(jnp.asarray(down), jnp.asarray(up)))
    sigma = np.asarray(found.sigma, np.float64)
    new_down, new_up = (np.asarray(a, np.float64) for a in found.factors)
    norm, top = np.linalg.norm(dense), expected[0]
    assert found.factors.up.dtype == jnp.float32
    assert new_up.shape[1] == min(*up.shape, *down.shape)
    assert np.isfinite(new_up).all()
    assert np.isfinite(new_down).all()
    if case is lopsided_gauge and not wide:
        return  # float32 QR keeps what the larger columns leave of the smaller ones: no promise
    assert np.linalg.norm(new_up @ new_down - dense) <= UPDATE[wide] * norm
    assert np.abs(sigma - expected[: len(sigma)]).max() <= UPDATE[wide] * top
    assert (np.diff(sigma) <= 0).all()
    # Columns carry sqrt(sigma) on each side and are orthogonal to each other.
    for gram in (new_up.T @ new_up, new_down @ new_down.T):
        assert np.abs(gram - np.diag(sigma)).max() <= 3 * UPDATE[wide] * top


@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
def test_batch_equals_one_by_one(wide: bool):
    pairs = [random(40, 60, 8, seed) for seed in range(3)]
    batch = Factors(
        jnp.asarray(np.stack([d for d, _ in pairs]), jnp.float32),
        jnp.asarray(np.stack([u for _, u in pairs]), jnp.float32),
    )
    with jax.enable_x64(wide):
        together = jax.jit(jax.vmap(lora.spectrum))(batch)
        for i in range(3):
            alone = lora.spectrum(Factors(batch.down[i], batch.up[i]))
            np.testing.assert_allclose(together.sigma[i], alone.sigma, rtol=2e-6)
