"""Flax names: against diffusers' Flax UNet, fixed digests of published nets, and back again."""

import hashlib
from typing import Any

import builders  # noqa: F401 (quietens diffusers before it is imported)
import flax.traverse_util
import jax
import pytest
from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel
from flax.core import unfreeze

from prolora_jax.architectures.flax_trees import flax_table, torch_key
from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.naming import flax_path
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table

# SHA-256 of the sorted lines "place<TAB>[shape]".
DIGESTS = {
    "sd15": "b7feb9262f4f7a3bf5ad61a0b60d73609299e840853a40910b4acbd5e50c12b3",
    "sd21": "a00774ea5a803f2037c4950d93ec09cde32d18ca1547f2e159739263ccc62849",
    "sdxl": "3c297f1bc9bb189d70edb7a396d08edb12f287f00f41e22d3c39dff8fffd2e85",
    "sdxl-refiner": "d37f464aa7f7ff9f688dad988e56cafac9b420f9120b33562daa3ab115e26eb9",
    "ssd-1b": "9c79a77f784a460a4a8a6bceaaacd44ab7ac05e70c48f87572b221fc5cd7bcd0",
    "vega": "5d530929a67650dff594c92952a51b14dd9410fe31c38c18a75a6f7062b933c9",
    "koala-700m": "f215099a0cad91a5984cef98d298f087b2cd1d6dd2019b9ada1befd697c1c9ee",
    "koala-1b": "1c5cdc0c3e44ca51971284bda88d2e358f0f69ce98f29f62cf444f4f8c481418",
    "bk-sdm-base": "77473ce08a4aa729e7972ee264e5d8892c9054a94823d0b9d4cb8901c756e640",
    "bk-sdm-small": "0cdfd0202f34cafa1a58d9f987444129515814821c5a8b02333d5e8112a6479d",
    "bk-sdm-tiny": "e65c364928facb9c89afb6e7ae79996ccb2c9d958009267de6ecae20e7b2cc07",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_trees_have_not_moved(name):
    table = flax_table(unet_table(CONFIGS[name]))
    lines = sorted(f"{place}\t{list(shape)}" for place, shape in table.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DIGESTS[name]


# What stock Flax classes of diffusers can express, in their words.
SD15: dict[str, Any] = {"cross_attention_dim": 768}
STOCK = {
    "sd15": SD15,
    "sd21": {"cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "bk-sdm-small": SD15 | {"layers_per_block": 1, "mid_block_type": None},
}


@pytest.mark.parametrize("name", STOCK)
def test_trees_equal_diffusers(name):
    unet = FlaxUNet2DConditionModel(**STOCK[name])
    with jax.numpy_dtype_promotion("standard"):  # our own code is tested under strict rules
        tree: Any = jax.eval_shape(unet.init_weights, jax.random.key(0))
    shapes: dict[str, Any] = flax.traverse_util.flatten_dict(unfreeze(tree), sep="/")
    assert flax_table(unet_table(CONFIGS[name])) == {k: v.shape for k, v in shapes.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_places_are_read_back(name):
    for key, shape in unet_table(CONFIGS[name]).items():
        (place,) = flax_table({key: shape})
        assert torch_key(tuple(place.split("/"))) == f"unet.{key}"
        assert torch_key(("params", "unet", *place.split("/"))) == f"unet.{key}"


def test_known_places():
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.9.ff.net.0.proj"
    place = "unet/down_blocks_1/attentions_0/transformer_blocks_9/ff/net_0/proj"
    assert flax_path(path) == place
    assert flax_path("unet.add_embedding.linear_1") == "unet/add_embedding/linear_1"
    layer = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert flax_path(layer) == layer.replace(".", "/")
    assert torch_key(("text_model", "encoder", "layers", "0", "mlp", "fc1", "kernel")) == (
        "text_model.encoder.layers.0.mlp.fc1.weight"
    )
    assert torch_key(("step",)) is None
    assert torch_key(("opt_state", "0", "count")) is None


def test_indexes_of_a_spec_meet_at_each_path():
    spec = published_spec("sdxl", text_encoders=True)
    assert set(spec.by_flax_name.values()) == set(spec.modules)
    path = "unet.up_blocks.0.upsamplers.0.conv"
    assert spec.by_flax_name["unet/up_blocks_0/upsamplers_0/conv"] == path
    assert spec.ldm_flat(path) == "output_blocks_2_2_conv"
