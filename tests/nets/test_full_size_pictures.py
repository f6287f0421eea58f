"""A whole drawing at published sizes, traced and not run: every shape fits every other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unets
from flax import linen as nn

from prolora_jax.architectures.flax_trees import flax_table, nested
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.nets.pipelines.generation import _compiled
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.sampling.noise import picture_keys
from prolora_jax.nets.sampling.samplers import sampler_named
from prolora_jax.nets.text.clip import ClipTextEncoder
from prolora_jax.nets.text.config import ClipConfig
from prolora_jax.nets.text.prompts import Prompts
from prolora_jax.nets.unet.config import from_diffusers
from prolora_jax.nets.unet.unet import UNet
from prolora_jax.nets.vae.config import vae_config
from prolora_jax.nets.vae.vae import Vae

CLIP_L = ClipConfig(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    projection_dim=768,
)
BIG_G = ClipConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    hidden_act="gelu",
)


def shapes_of(net: nn.Module, given: tuple[int, ...], dtype: Any) -> Any:
    return jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(given, dtype))["params"]


# UNet, text encoders and VAE together, in millions of parameters.
@pytest.mark.parametrize(
    ("name", "sample_size", "millions"), [("sd15", 64, 1066.2), ("ssd-1b", 128, 2232.7)]
)
def test_shapes_of_a_whole_drawing(name, sample_size, millions):
    encoders = {"text_encoder": ClipTextEncoder(CLIP_L)}
    if name != "sd15":
        encoders["text_encoder_2"] = ClipTextEncoder(BIG_G, projected=True)
    vae = Vae(vae_config(unets.PUBLISHED_VAE))
    params = {"vae": shapes_of(vae, (1, 3, 8, 8), jnp.float32)}
    table = flax_table(unet_table(CONFIGS[name]))
    params["unet"] = nested(
        {place: jax.ShapeDtypeStruct(s, jnp.bfloat16) for place, s in table.items()}
    )
    params |= {part: shapes_of(net, (1, 77), jnp.int32) for part, net in encoders.items()}
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
    pipeline = Pipeline(
        unet=UNet(from_diffusers(unets.PUBLISHED[name]), dtype=jnp.bfloat16),
        vae=vae,
        text_encoders={part: net.clone(dtype=jnp.bfloat16) for part, net in encoders.items()},
        tokenizers={},
        sampler=sampler_named("auto", unets.SCHEDULER, origin="x"),
        zeros_for_empty=name != "sd15",
        sample_size=sample_size,
    )
    tokens, negative = (
        Prompts(jax.ShapeDtypeStruct((rows, len(encoders), 1, 77), jnp.int32), None)
        for rows in (2, 1)
    )
    noise = jax.ShapeDtypeStruct((2, 4, sample_size, sample_size), jnp.float32)
    draw = _compiled(pipeline, 25, True, pipeline.zeros_for_empty, None)
    drawn = jax.eval_shape(draw, params, tokens, noise, picture_keys([0, 1]), negative, 5.0, {})
    assert drawn.shape == (2, 8 * sample_size, 8 * sample_size, 3)
    assert drawn.dtype == jnp.float32
