"""The libraries that have Flax: what is mended in them, and that they keep quiet."""

import logging
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from numpy.testing import assert_allclose

from prolora_jax.nets.pipelines.diffusers_flax import flax_class, theirs


def test_what_broke_with_newer_jax_is_mended():
    flax_class("FlaxStableDiffusionPipeline")
    vae = import_module("diffusers.models.vae_flax").FlaxAutoencoderKL
    net = {"a": {"kernel": jnp.ones(3)}, "b": jnp.zeros(2), "n": jnp.arange(2)}
    with theirs():
        half = vae().to_bf16(net)
        some = vae().to_bf16(net, {"a": {"kernel": True}, "b": False, "n": False})
    assert [a.dtype.name for a in jax.tree.leaves(half)] == ["bfloat16", "bfloat16", "int32"]
    assert [a.dtype.name for a in jax.tree.leaves(some)] == ["bfloat16", "float32", "int32"]
    checker = import_module("diffusers.pipelines.stable_diffusion.safety_checker_flax")
    one, other = np.random.default_rng(0).standard_normal((2, 3, 5), np.float32)
    want = one @ other.T / np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    with theirs():
        assert_allclose(checker.jax_cosine_distance(one, other), want, atol=1e-6)
        assert not np.asarray(checker.jax_cosine_distance(0 * one, other)).any()
    assert not hasattr(jax, "tree_map")
    assert checker.jnp is not jnp
    assert checker.jnp.linalg is jnp.linalg


def test_the_ddpm_sampler_steps():
    flax_class("FlaxStableDiffusionPipeline")
    ddpm = import_module("diffusers.schedulers.scheduling_ddpm_flax")
    mine: Any = DDPMScheduler()
    sample, predicted = np.random.default_rng(1).standard_normal((2, 1, 4, 3, 3), np.float32)
    with theirs():
        sampler = ddpm.FlaxDDPMScheduler()
        state = sampler.create_state()

        def step(time: int, seed: int) -> np.ndarray:
            key = jax.random.key(seed)
            return np.asarray(sampler.step(state, predicted, time, sample, key).prev_sample)

        want = mine.step(torch.from_numpy(predicted), 0, torch.from_numpy(sample)).prev_sample
        # Of the first step its coefficients are 1e-4 / (1 - 0.9999): float32 keeps 3 digits.
        assert_allclose(step(0, 0), want.numpy(), atol=1e-3)
        keys = [jax.random.split(jax.random.key(seed), 1)[0] for seed in (0, 1)]
        noises = [np.asarray(jax.random.normal(key, sample.shape)) for key in keys]
        deviation = float(mine._get_variance(500)) ** 0.5
        found = step(500, 0) - step(500, 1)
        assert_allclose(found, deviation * (noises[0] - noises[1]), atol=1e-5)


def test_the_libraries_speak_as_loud_as_before():
    names = ("diffusers", "transformers")
    levels = [import_module(f"{name}.utils.logging") for name in names]
    before = [level.get_verbosity() for level in levels]
    config: Any = jax.config
    try:
        levels[0].set_verbosity_info()
        levels[1].set_verbosity_debug()
        with theirs():
            assert [level.get_verbosity() for level in levels] == [logging.ERROR] * 2
            assert config.jax_numpy_dtype_promotion == "standard"
        assert [level.get_verbosity() for level in levels] == [logging.INFO, logging.DEBUG]
        with pytest.raises(ZeroDivisionError), theirs():
            _ = 1 / 0
        assert [level.get_verbosity() for level in levels] == [logging.INFO, logging.DEBUG]
        assert config.jax_numpy_dtype_promotion == "strict"
    finally:
        for level, verbosity in zip(levels, before, strict=True):
            level.set_verbosity(verbosity)
