"""`config.json` of every published net, there and back, and what is refused in one."""

from typing import Any

import pytest
import torch
import unets
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.nets.unet.config import as_diffusers, from_diffusers

HEADS = {"sdxl": (5, 10, 20), "sd15": (8, 8, 8, 8), "sdxl-refiner": (6, 12, 24, 24)}


def built(config: dict[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


@pytest.mark.parametrize("name", unets.PUBLISHED)
def test_published_configurations(name):
    # As a file of diffusers has it: every field, those with a default, too.
    written = dict(built(unets.PUBLISHED[name]).config)
    config = from_diffusers(written)
    assert config == from_diffusers(unets.PUBLISHED[name])
    assert unet_table(config.tensors) == unet_table(CONFIGS[name])
    assert config.heads == HEADS.get(name, config.heads)
    assert (config.norm_groups, config.norm_eps) == (32, 1e-5)


@pytest.mark.parametrize("name", unets.SMALL)
def test_configurations_are_written_as_diffusers_reads_them(name):
    config = from_diffusers(unets.SMALL[name])
    again = as_diffusers(config)
    assert from_diffusers(again) == config
    del again["_class_name"]
    state = {key: tuple(tensor.shape) for key, tensor in built(again).state_dict().items()}
    assert state == unet_table(config.tensors)


def test_what_only_says_how_to_compute_is_passed_over():
    plain = unets.SMALL["sd21"]
    extra = {"upcast_attention": True, "sample_size": 96, "_diffusers_version": "0.1"}
    assert from_diffusers(plain | extra | {"dropout": 0.0}) == from_diffusers(plain)


NESTED = {"transformer_layers_per_block": [0, [1, 1], [1, 1]]}
REVERSE = "reverse_transformer_layers_per_block"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"act_fn": "gelu"}, "field act_fn is 'gelu'; expected 'silu' or 'swish'"),
    ({"class_embed_type": "timestep"}, "field class_embed_type is 'timestep'; expected null"),
    ({"time_cond_proj_dim": 256}, "field time_cond_proj_dim is 256; expected null"),
    ({"only_cross_attention": True}, "field only_cross_attention is True; expected False"),
    ({"resnet_time_scale_shift": "scale_shift"}, "expected 'default'"),
    ({"made_up": 1}, "field made_up is 1; expected no such field"),
    ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "expected 'UNetMidBlock2DCrossAttn' or"),
    ({"addition_embed_type": "image"}, "field addition_embed_type is 'image'; expected None or"),
    ({"down_block_types": ["AttnDownBlock2D"] * 3}, "expected CrossAttnDownBlock2D or DownBlock2D"),
    ({"up_block_types": ["UpBlock2D"] * 2}, "expected 3 entries, as block_out_channels has"),
    ({"block_out_channels": [8, 18, 16]}, "expected multiples of 4 groups"),
    ({"block_out_channels": [8, "x"]}, "expected positive numbers"),
    ({"attention_head_dim": [1, 3, 4]}, r"field attention_head_dim is \(1, 3, 4\); expected a div"),
    ({"attention_head_dim": [1, 2]}, "expected one number or 3"),
    ({"layers_per_block": [1, 2, 2]}, r"field layers_per_block is \[1, 2, 2\]; expected one posit"),
    ({"addition_time_embed_dim": None}, "field addition_time_embed_dim is None; expected one pos"),
    (NESTED, f"field {REVERSE} is None; expected a list"),
    (NESTED | {REVERSE: [[1, 1], [1, 1], 1]}, "expected one number for the last block"),
    (NESTED | {REVERSE: [[1, 1, 1], [1, 1], 1], "mid_block_type": None}, "a number or 3 numbers"),
    ({"transformer_layers_per_block": [1, 1]}, "expected 3 entries, one for each block"),
]


@pytest.mark.parametrize(("change", "match"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(change, match):
    with pytest.raises(BaseModelError, match=f"^unet/config.json: .*{match}") as caught:
        from_diffusers(unets.SMALL["sdxl"] | change, origin="unet/config.json")
    assert caught.value.code is Refusal.UNSUPPORTED_CONFIG
