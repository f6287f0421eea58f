"""Samplers that add noise: picture by picture, in loops, over devices."""

import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unets
from diffusers.schedulers import scheduling_lcm
from numpy.testing import assert_allclose, assert_array_equal
from patience import UNTIL_HUNG

from prolora_jax.errors import UsageError
from prolora_jax.nets.sampling.noise import fresh_noise, picture_keys
from prolora_jax.nets.sampling.samplers import sampler_named
from prolora_jax.nets.sampling.scheduler import SamplerState, TableSampler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (3, 4, 8, 8)


def lcm_sampler(**fields: Any) -> TableSampler:
    return sampler_named("lcm", BETAS | fields, origin="a.json")


def latents() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE, np.float32)


def net(sample: Any, t: Any, tanh: Any) -> Any:
    """Stands for a net, in torch or in JAX."""
    return 0.7 * tanh(3 * sample) + 1e-5 * t


@partial(jax.jit, static_argnums=0, compiler_options=unets.QUICK)
def sampled(scheduler: TableSampler, state: SamplerState, start: Any) -> jax.Array:
    """A whole run, in a loop that is compiled."""

    def body(i: jax.Array, carry: tuple[jax.Array, SamplerState]) -> Any:
        sample, state = carry
        t = state.timesteps[i]
        shown = scheduler.scale_model_input(state, sample, t)
        predicted = net(shown, t.astype(jnp.float32), jnp.tanh)
        return tuple(scheduler.step(state, predicted, t, sample))

    first = (start * state.init_noise_sigma, state)
    return jax.lax.fori_loop(0, state.timesteps.size, body, first)[0]


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8])
def test_times_equal_torch_and_the_last_step_adds_nothing(steps):
    scheduler = lcm_sampler()
    state = scheduler.set_timesteps(scheduler.create_state(5), steps, SHAPE)
    theirs: Any = scheduling_lcm.LCMScheduler.from_config(BETAS)
    theirs.set_timesteps(steps)
    assert_array_equal(state.timesteps, theirs.timesteps)
    state = state.replace(taken=jnp.int32(steps - 1))
    last, half = state.timesteps[-1], jnp.asarray(latents(), jnp.bfloat16)
    end, _ = scheduler.step(state, half, last, latents())
    assert end.dtype == jnp.float32
    other = state.replace(key=picture_keys([1, 2, 3]))
    assert_array_equal(end, scheduler.step(other, half, last, latents())[0])


def test_every_picture_and_every_step_has_noise_of_its_own():
    state = lcm_sampler().set_timesteps(lcm_sampler().create_state(3), 4, SHAPE)
    noise = np.stack([fresh_noise(state.key, t, SHAPE[1:]) for t in state.timesteps])
    flat = noise.reshape(4 * SHAPE[0], -1)
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.25
    assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.05)


def test_a_picture_does_not_depend_on_its_neighbours():
    scheduler, start = lcm_sampler(), latents()

    def pictures(key: Any, rows: list[int]) -> np.ndarray:
        state = scheduler.set_timesteps(scheduler.create_state(key), 4, (len(rows), *SHAPE[1:]))
        return np.asarray(sampled(scheduler, state, start[rows]))

    alone = pictures(picture_keys([7]), [2])
    among = pictures(picture_keys([1, 7, 4]), [0, 2, 1])
    assert_allclose(among[1], alone[0], rtol=0, atol=1e-6)
    raw = np.asarray(jax.random.key_data(picture_keys([1, 7, 4])))
    assert_array_equal(pictures(raw, [0, 2, 1]), among)


def test_requests_that_are_refused():
    scheduler = lcm_sampler(original_inference_steps=25)
    state = scheduler.create_state()
    for steps in (0, 26):
        with pytest.raises(UsageError, match=f"found {steps}; expected 1 to"):
            scheduler.set_timesteps(state, steps, SHAPE)
    with pytest.raises(UsageError, match=r"found keys of shape \(\).* set_timesteps"):
        scheduler.set_timesteps(state, 4)
    two = scheduler.create_state(picture_keys([1, 2]))
    with pytest.raises(UsageError, match="found no times"):
        scheduler.step(two, latents()[:2], 999, latents()[:2])
    differ = r"of shape \(2,\) for .* begins with \(3,\)"
    with pytest.raises(UsageError, match=differ):
        scheduler.set_timesteps(two, 4, SHAPE)
    with pytest.raises(UsageError, match=differ):
        scheduler.step(scheduler.set_timesteps(two, 4), latents(), 999, latents())
    for key in (jnp.zeros(3), jax.random.key(0, impl="rbg"), picture_keys([1, 2])[None]):
        with pytest.raises(UsageError, match="expected a seed, or a key of threefry2x32"):
            scheduler.create_state(key)


SHARDED = """
import functools, sys, jax, numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from prolora_jax.nets.sampling.samplers import sampler_named
assert not {"torch", "diffusers", "transformers"} & {*sys.modules}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SAMPLER = sampler_named("lcm", BETAS, origin="x")

@functools.partial(jax.jit, static_argnums=0)
def run(scheduler, key, start):
    state = scheduler.set_timesteps(scheduler.create_state(key), 4, start.shape)
    body = lambda i, c: scheduler.step(c[1], 0.5 * c[0], c[1].timesteps[i], c[0]).to_tuple()
    return jax.lax.fori_loop(0, 4, body, (start, state))[0]

start, key = jax.random.normal(jax.random.key(1), (4, 4, 8, 8)), jax.random.key(2)
rows = NamedSharding(Mesh(numpy.asarray(jax.devices()), ("rows",)), PartitionSpec("rows"))
for keys in (key, jax.random.split(key, 4)):
    split = jax.device_put(keys, rows) if keys.ndim else keys
    found = run(SAMPLER, split, jax.device_put(start, rows))
    assert len(found.sharding.device_set) == 2 and not found.is_fully_replicated
    numpy.testing.assert_allclose(found, run(SAMPLER, keys, start), rtol=0, atol=1e-5)
"""


def test_sharded_over_pictures_and_without_torch():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", SHARDED]
    subprocess.run(program, env={**os.environ, **flags}, check=True, timeout=UNTIL_HUNG)
