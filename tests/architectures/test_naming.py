"""LDM and diffusers names: against diffusers' own checkpoint converter, and the known traps."""

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.spellings import ldm_paths
from prolora_jax.architectures.unet.table import unet_table

SPECS = {name: spec_from_config(config, name=name) for name, config in CONFIGS.items()}
TO_Q = "transformer_blocks.0.attn1.to_q"
TO_OUT = "transformer_blocks.9.attn2.to_out.0"
# Base, dotted diffusers path, dotted LDM path; as they stand in published files.
KNOWN = [
    ("sdxl", f"down_blocks.1.attentions.0.{TO_Q}", f"input_blocks.4.1.{TO_Q}"),
    ("sdxl", f"mid_block.attentions.0.{TO_OUT}", f"middle_block.1.{TO_OUT}"),
    ("sdxl", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
    ("sdxl", "down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
    ("sdxl", "add_embedding.linear_2", "label_emb.0.2"),
    # Without attention in the block the upsampler moves up one place.
    ("sd15", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
    ("sd15", "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
    ("sd15", "time_embedding.linear_1", "time_embed.0"),
    ("sd15", "conv_out", "out.2"),
    ("sd15", "mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
    # One layer per block moves every number.
    ("koala-700m", "down_blocks.1.attentions.0.proj_in", "input_blocks.3.1.proj_in"),
    ("koala-700m", "up_blocks.1.attentions.1.proj_in", "output_blocks.3.1.proj_in"),
    ("ssd-1b", "mid_block.resnets.0.conv1", "middle_block.0.in_layers.2"),
]


@pytest.mark.parametrize(("base", "path", "ldm"), KNOWN)
def test_published_names(base, path, ldm):
    spec = SPECS[base]
    assert spec.diffusers_flat(f"unet.{path}") == path.replace(".", "_")
    assert spec.ldm_flat(f"unet.{path}") == ldm.replace(".", "_")
    assert spec.by_flat_name[path.replace(".", "_")] == f"unet.{path}"
    assert spec.by_flat_name[ldm.replace(".", "_")] == f"unet.{path}"


@pytest.mark.parametrize("base", SPECS)
def test_no_two_names_meet(base):
    spec = SPECS[base]
    assert len(spec.by_flat_name) == 2 * len(spec.modules)
    assert set(spec.by_flat_name.values()) == set(spec.modules)


@pytest.mark.parametrize("base", ["sd15", "sdxl", "ssd-1b", "koala-1b"])
def test_names_of_all_tensors_equal_diffusers_converter(base):
    table = unet_table(CONFIGS[base])
    names = ldm_paths("unet." + key.rsplit(".", 1)[0] for key in table)
    # Each tensor is a number of its own, so that one in the wrong place shows.
    numbered = {key: torch.tensor(i) for i, key in enumerate(table)}
    checkpoint = {}
    for key, number in numbered.items():
        module, leaf = key.rsplit(".", 1)
        checkpoint[f"model.diffusion_model.{names[f'unet.{module}']}.{leaf}"] = number
    config = {"layers_per_block": CONFIGS[base].layers_per_block}
    if SPECS[base].is_sdxl_family:
        config |= {"addition_embed_type": "text_time"}
    converted = convert_ldm_unet_checkpoint(checkpoint, config)
    assert converted == numbered


def test_only_sdxl_and_its_children_are_its_family():
    family = {name for name, spec in SPECS.items() if spec.is_sdxl_family}
    assert family == {"sdxl", "sdxl-refiner", "ssd-1b", "vega", "koala-700m", "koala-1b"}


def test_a_layer_without_an_ldm_name_is_a_key_error():
    with pytest.raises(KeyError, match="mid_block"):
        SPECS["vega"].ldm_flat("unet.mid_block.attentions.0.proj_in")
