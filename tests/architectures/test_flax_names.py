"""Flax names: against trees of diffusers' Flax UNet, digests of published nets, and back again."""

import pytest
from stock_trees import DIGESTS, UNETS, digest, stock_tree

from prolora_jax.architectures.flax_trees import flax_table, torch_key
from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.naming import flax_path
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.nets.unet.config import from_diffusers


@pytest.mark.parametrize("name", CONFIGS)
def test_trees_have_not_moved(name):
    assert digest(flax_table(unet_table(CONFIGS[name]))) == DIGESTS[name]


# tests/stock holds these against the class, and the digests of what it can express.
@pytest.mark.parametrize("name", UNETS)
def test_trees_equal_diffusers(name):
    assert flax_table(unet_table(from_diffusers(UNETS[name]).tensors)) == stock_tree(name)


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
