"""The VAE against torch's, its parameter tree against diffusers' Flax's, its memory."""

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
from stock_trees import stock_tree

from prolora_jax.architectures.flax_parts import vae_to_flax
from prolora_jax.architectures.flax_trees import leaves
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.nets.unet.attention import AT_ONCE
from prolora_jax.nets.vae.config import VaeConfig, vae_config
from prolora_jax.nets.vae.parts import VaeAttention
from prolora_jax.nets.vae.vae import Vae

RTOL = 1e-5  # of the largest number


def opened(net: AutoencoderKL) -> tuple[Vae, Any]:
    tensors = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    params = jax.tree.map(lambda a: jnp.asarray(np.ascontiguousarray(a)), vae_to_flax(tensors))
    return Vae(vae_config(dict(net.config))), params


def run(vae: Vae, params: Any, given: np.ndarray, method: Any) -> Any:
    call = jax.jit(
        lambda p, x: vae.apply({"params": p}, x, method=method), compiler_options=unets.QUICK
    )
    return call(params, given)


def assert_close(found: Any, want: torch.Tensor) -> None:
    expected = want.numpy()
    assert expected.std() > 0.05
    assert_allclose(found, expected, rtol=0, atol=RTOL * np.abs(expected).max())


def by_torch(net: Any, latents: np.ndarray) -> Any:
    return net.decode(torch.from_numpy(latents))


@pytest.fixture(scope="module")
def tiny() -> tuple[AutoencoderKL, Vae, Any]:
    net = tiny_pipelines.vae()
    return net, *opened(net)


# 33 x 33 latents are one block of attention and a bit; odd heights and widths are rounded down.
@pytest.mark.parametrize("size", [(16, 24), (66, 67)])
def test_encoding_equals_torch(tiny, size):
    net, vae, params = tiny
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 3, *size)).astype(np.float32)
    with torch.no_grad():
        want: Any = net.encode(torch.from_numpy(pictures))
    mean, logvar = run(vae, params, pictures, vae.encode)
    assert mean.shape == (2, 4, size[0] // 2, size[1] // 2)
    assert (mean.shape[2] * mean.shape[3] > AT_ONCE) is (size[0] > 60)
    assert_close(mean, want.latent_dist.mean)
    assert_close(logvar, want.latent_dist.logvar)


@pytest.mark.parametrize("size", [(8, 4), (33, 33)])
def test_decoding_equals_torch(tiny, size):
    net, vae, params = tiny
    latents = np.random.default_rng(1).standard_normal((2, 4, *size), np.float32)
    with torch.no_grad():
        want = by_torch(net, latents)
    assert_close(run(vae, params, latents, vae.decode), want.sample)


def test_the_variance_is_kept_within_bounds(tiny):
    _, vae, params = tiny
    bias = params["quant_conv"]["bias"]
    wide = params | {
        "quant_conv": {**params["quant_conv"], "bias": bias.at[4:6].set((-99.0, 99.0))}
    }
    _, logvar = run(vae, wide, np.zeros((1, 3, 4, 4), np.float32), vae.encode)
    assert (logvar.min(), logvar.max()) == (-30, 20)


def test_the_middle_at_its_real_width_equals_torch():
    torch.manual_seed(0)
    config: dict[str, Any] = {"layers_per_block": 1, "block_out_channels": (512,)}
    net = AutoencoderKL(**config).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "to_q" in name:  # as new, all pixels look everywhere alike
                parameter *= 5
    vae, params = opened(net)
    latents = np.random.default_rng(2).standard_normal((1, 4, 6, 6), np.float32)
    with torch.no_grad():
        want = by_torch(net, latents)
    assert_close(run(vae, params, latents, vae.decode), want.sample)


def shapes(tree: Any) -> dict[str, Any]:
    return {place: leaf.shape for place, leaf in leaves(tree)}


def test_the_tree_is_that_of_diffusers():
    want = stock_tree("vae")
    vae = Vae(vae_config(unets.PUBLISHED_VAE))
    picture = jax.ShapeDtypeStruct((1, 3, 32, 32), jnp.float32)
    tree: Any = jax.eval_shape(vae.init, jax.random.key(0), picture)
    assert shapes(tree["params"]) == want
    assert sum(int(np.prod(shape)) for shape in want.values()) == 83_653_863  # as published


def test_half_precision(tiny):
    _, vae, params = tiny
    latents = np.random.default_rng(1).standard_normal((1, 4, 4, 4), np.float32)
    full = run(vae, params, latents, vae.decode)
    half = vae.clone(dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # norms of linen go by way of float32
        found: Any = run(half, params, latents, half.decode)
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.asarray(found, np.float32) - full).max() / np.abs(full).max()
    assert 1e-4 < error < 0.05


def test_memory_of_a_picture_of_1024_pixels():
    vae = Vae(vae_config(unets.PUBLISHED_VAE))
    picture = jax.ShapeDtypeStruct((1, 3, 8, 8), jnp.float32)
    params = jax.eval_shape(vae.init, jax.random.key(0), picture)
    decode = jax.jit(
        lambda params, latents: vae.apply(params, latents, method=vae.decode),
        compiler_options={"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
    )
    latents = jax.ShapeDtypeStruct((1, 4, 128, 128), jnp.float32)
    compiled: Any = decode.lower(params, latents).compile()
    # Two and a half of the largest activations, 256 channels of each pixel.
    assert compiled.memory_analysis().temp_size_in_bytes < 2.6 * 2**30


def test_attention_in_blocks_equals_torch(tiny):
    net, vae, params = tiny
    attention: Any = net.decoder.mid_block.attentions[0]
    given = np.random.default_rng(3).standard_normal((2, 40, 30, 16), np.float32)
    with torch.no_grad():
        want = attention(torch.from_numpy(given.transpose(0, 3, 1, 2)))
    layer = VaeAttention(vae.bind({"params": params}).decoder.style)
    place = params["decoder"]["mid_block"]["attentions_0"]
    found = layer.apply({"params": place}, jnp.asarray(given))
    assert_close(jnp.asarray(found).transpose(0, 3, 1, 2), want)


def test_what_is_missing_has_diffusers_defaults():
    want: Any = AutoencoderKL(norm_num_groups=32, block_out_channels=(64,)).config
    ours = vae_config({"scaling_factor": None, "_class_name": "AutoencoderKL"})
    assert ours == VaeConfig()
    for name in VaeConfig.__dataclass_fields__:
        assert getattr(ours, name) == want[name], name
    assert vae_config(dict(want)) == ours  # whatever diffusers writes today
    assert vae_config(unets.PUBLISHED_VAE).pixels_per_latent == 8


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"latents_mean": [0.0]}, r"x: field latents_mean is \[0.0\]; expected null; only VAEs"),
        ({"use_quant_conv": False}, "field use_quant_conv is False; expected True"),
        ({"shift_factor": 0.1}, "field shift_factor is 0.1; expected 0;"),
        ({"act_fn": "mish"}, "field act_fn is 'mish'; expected 'silu' or 'swish'"),
        ({"brand_new": 1}, "field brand_new is 1; expected no such field"),
        ({"latent_channels": 0}, "field latent_channels is 0; expected a positive number"),
        ({"block_out_channels": []}, r"block_out_channels is \[\]; expected positive numbers"),
        ({"block_out_channels": [64, 64]}, "down_block_types is .*; expected DownEnc.* of 2 block"),
        ({"up_block_types": ["UpBlock2D"]}, r"up_block_types is \['UpBlock2D'\]; expected UpDec"),
        ({"norm_num_groups": 3}, r"norm_num_groups is 3; expected a divisor .*, \(64,\)"),
        ({"scaling_factor": 0}, "field scaling_factor is 0; expected a positive number"),
    ],
)
def test_what_is_not_supported(change, match):
    with pytest.raises(BaseModelError, match=match) as caught:
        vae_config(change, origin="x")
    assert caught.value.code is Refusal.UNSUPPORTED_CONFIG
