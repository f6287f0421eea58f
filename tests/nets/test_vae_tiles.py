"""The VAE in tiles against diffusers' own tiling, and against itself in one piece; its memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipelines
import torch
import unets
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.testing import assert_allclose

from prolora_jax.architectures.flax_parts import vae_to_flax
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.vae.config import vae_config
from prolora_jax.nets.vae.tiles import decoded, encoded, tile_for
from prolora_jax.nets.vae.vae import Vae

RTOL = 1e-5  # of the largest number
TILE = 16
"""Pixels; 8 latents of the tiny VAE."""


@pytest.fixture(scope="module")
def tiny() -> tuple[AutoencoderKL, Vae, Any]:
    net = tiny_pipelines.vae()
    # As diffusers sets them from a VAE's configuration, for smaller pictures.
    net.enable_tiling()
    net.tile_sample_min_size, net.tile_latent_min_size = TILE, TILE // 2
    tensors = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    params = jax.tree.map(lambda a: jnp.asarray(np.ascontiguousarray(a)), vae_to_flax(tensors))
    return net, Vae(vae_config(dict(net.config))), params


def quick(function: Any, *given: Any) -> Any:
    return jax.jit(function, compiler_options=unets.QUICK)(*given)


def assert_close(found: Any, want: Any) -> None:
    assert want.std() > 0.05
    assert_allclose(found, want, rtol=0, atol=RTOL * np.abs(want).max())


# Nine tiles of nine shapes; two whose first hides behind the second; one row.
@pytest.mark.parametrize("size", [(13, 20), (9, 8), (4, 14)])
def test_decoding_in_tiles_equals_diffusers(tiny, size):
    net, vae, params = tiny
    latents = np.random.default_rng(1).standard_normal((2, 4, *size), np.float32)
    with torch.no_grad():
        want: Any = net.decode(torch.from_numpy(latents))
    found = quick(lambda p, x: decoded(vae, p, x, TILE), params, latents)
    assert_close(found, want.sample.numpy())
    whole = quick(lambda p, x: decoded(vae, p, x, None), params, latents)
    assert np.abs(found - whole).max() > 0.01  # norms and attention see a tile alone


def test_encoding_in_tiles_equals_diffusers(tiny):
    net, vae, params = tiny
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 3, 26, 40)).astype(np.float32)
    with torch.no_grad():
        want: Any = net.encode(torch.from_numpy(pictures))
    mean, logvar = quick(lambda p, x: encoded(vae, p, x, TILE), params, pictures)
    assert_close(mean, want.latent_dist.mean.numpy())
    assert_close(logvar, want.latent_dist.logvar.numpy())


def test_one_tile_is_one_piece(tiny):
    _, vae, params = tiny
    latents = np.random.default_rng(2).standard_normal((1, 4, 8, 6), np.float32)
    whole = quick(lambda p, x: decoded(vae, p, x, None), params, latents)
    tiled = quick(lambda p, x: decoded(vae, p, x, TILE), params, latents)
    assert_close(tiled, np.asarray(whole))
    both = [
        quick(lambda p, x, t=tile: encoded(vae, p, x, t), params, np.asarray(whole))
        for tile in (None, 2 * TILE)
    ]
    for one, other in zip(*both, strict=True):
        assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(one).max())


def test_when_there_are_tiles():
    config = vae_config(unets.PUBLISHED_VAE)
    asked = {
        ("auto", 1024, 1024): None,
        ("auto", 2048, 512): None,
        ("auto", 1032, 1024): 512,
        ("off", 4096, 4096): None,
        (256, 512, 512): 256,
        (256, 264, 64): 256,
    }
    for (tile, *size), want in asked.items():
        assert tile_for(tile, (size[0], size[1]), config) == want, (tile, size)
    for wrong in (0, -32, 8, 100):
        with pytest.raises(UsageError, match=f"--vae-tile {wrong}: .*multiple of 32") as caught:
            tile_for(wrong, (64, 64), config)
        assert caught.value.code is Refusal.BAD_OPTION


def test_memory_of_a_picture_of_1024_pixels():
    vae = Vae(vae_config(unets.PUBLISHED_VAE))
    picture = jax.ShapeDtypeStruct((1, 3, 8, 8), jnp.float32)
    made: Any = jax.eval_shape(vae.init, jax.random.key(0), picture)
    decode = jax.jit(
        lambda p, x: decoded(vae, p, x, 512),
        compiler_options={"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
    )
    latents = jax.ShapeDtypeStruct((1, 4, 128, 128), jnp.float32)
    compiled: Any = decode.lower(made["params"], latents).compile()
    # A quarter of what one piece needs (test_vae.py).
    assert compiled.memory_analysis().temp_size_in_bytes < 0.65 * 2**30
