"""What nets predict, against the definitions in plain NumPy."""

from itertools import product
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prolora_jax.refine.parametrisation import (
    Parametrisation,
    clean_and_noise,
    converted,
    shown_to_a_flow,
)

KINDS = get_args(Parametrisation)
RNG = np.random.default_rng(0)
CLEAN, ADDED = RNG.standard_normal((2, 5, 3))


def said(kind: str, signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The definitions, as the papers write them."""
    return {
        "epsilon": ADDED,
        "v_prediction": signal * ADDED - noise * CLEAN,
        "flow": ADDED - CLEAN,
    }[kind]


def levels(schedule: str) -> tuple[np.ndarray, np.ndarray]:
    time = np.array([0.02, 0.3, 0.5, 0.8, 0.97])[:, None]
    if schedule == "variance preserving":
        return np.cos(np.pi / 2 * time), np.sin(np.pi / 2 * time)
    return 1 - time, time


@pytest.mark.parametrize(("of", "to"), [*product(KINDS, KINDS)])
@pytest.mark.parametrize("schedule", ["variance preserving", "straight"])
def test_each_becomes_each_other(of: Parametrisation, to: Parametrisation, schedule: str):
    signal, noise = levels(schedule)
    noisy = signal * CLEAN + noise * ADDED
    found = converted(said(of, signal, noise), noisy, signal, noise, of=of, to=to)
    np.testing.assert_allclose(found, said(to, signal, noise), atol=1e-12)


@pytest.mark.parametrize("of", KINDS)
def test_picture_and_noise_come_back(of: Parametrisation):
    signal, noise = levels("variance preserving")
    noisy = signal * CLEAN + noise * ADDED
    clean, added = clean_and_noise(of, said(of, signal, noise), noisy, signal, noise)
    np.testing.assert_allclose(clean, CLEAN, atol=1e-12)
    np.testing.assert_allclose(added, ADDED, atol=1e-12)


def test_velocity_of_a_net_is_that_of_the_papers_formula():
    """x_0 = a x - s v holds for any answer of a net, right or wrong, where a^2 + s^2 = 1."""
    signal, noise = levels("variance preserving")
    noisy, answer = RNG.standard_normal((2, 5, 3))
    clean, added = clean_and_noise("v_prediction", answer, noisy, signal, noise)
    np.testing.assert_allclose(clean, signal * noisy - noise * answer, atol=1e-12)
    np.testing.assert_allclose(added, noise * noisy + signal * answer, atol=1e-12)


def test_a_flow_is_shown_the_same_picture_on_its_own_path():
    signal, noise = levels("variance preserving")
    seen, time = shown_to_a_flow(signal * CLEAN + noise * ADDED, signal, noise)
    np.testing.assert_allclose(seen, (1 - time) * CLEAN + time * ADDED, atol=1e-12)
    np.testing.assert_allclose(time / (1 - time), noise / signal, atol=1e-12)


def test_effects_agree_whichever_way_the_nets_speak():
    """Subtracted velocities are 1 / a times subtracted noises: one up to a weight per level."""
    signal, noise = levels("variance preserving")
    noisy, one, other = RNG.standard_normal((3, 5, 3))
    as_velocity = [
        converted(x, noisy, signal, noise, of="epsilon", to="v_prediction") for x in (one, other)
    ]
    np.testing.assert_allclose(as_velocity[0] - as_velocity[1], (one - other) / signal, atol=1e-12)


def test_jax_traces_it():
    signal, noise = (jnp.asarray(x, jnp.float32) for x in levels("variance preserving"))
    noisy = jnp.ones((5, 3), jnp.float32)
    traced = jax.jit(lambda x: converted(x, noisy, signal, noise, of="epsilon", to="flow"))(noisy)
    assert traced.dtype == jnp.float32
