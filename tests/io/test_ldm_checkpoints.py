"""Single files in LDM naming, with their text encoders, read back by diffusers' own converters."""

from dataclasses import replace
from typing import Any

import builders
import checkpoints
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_open_clip_checkpoint,
)
from numpy.testing import assert_array_equal

from prolora_jax.architectures.unet.ldm import paths_of_ldm_names
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.spellings import ldm_paths
from prolora_jax.architectures.unet.table import UNetTensors, unet_table
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model

KOALA_LIKE = builders.TINY_XL | {"layers_per_block": 1, "mid_block_type": None}
NETS = {
    "xl": builders.TINY_XL,
    "ssd": builders.TINY_SSD,
    "sd15": builders.TINY_SD15,
    "koala": KOALA_LIKE,
    "lcm": builders.TINY_XL | {"time_cond_proj_dim": 12},
    "lcm-sd15": builders.TINY_SD15 | {"time_cond_proj_dim": 12},
    "unclip": builders.TINY_SD15
    | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 12},
    "upscaler": builders.TINY_SD15 | {"num_class_embeds": 10},
}
# diffusers' converter leaves this one out; what it is called is written down here.
GUIDANCE = "time_embedding.cond_proj.weight"
CLIP = "conditioner.embedders.0.transformer."
OPEN_CLIP = "conditioner.embedders.1.model."
SD2 = "cond_stage_model.model."


def assert_holds(model: BaseModel, component: str, module: Any) -> None:
    """The model has the weights of a module's linear layers and convolutions, and no others."""
    state = module.state_dict() if component == "unet" else checkpoints.text_state(module)
    want = {
        f"{component}.{name.removesuffix('.weight')}": weight.numpy()
        for name, weight in state.items()
        if name.endswith(".weight") and weight.ndim > 1 and ".embeddings." not in name
    }
    assert set(model.spec.component(component)) == set(want)
    for path, weight in want.items():
        assert model.spec.modules[path].shape == weight.shape
        assert_array_equal(model.weight(path), weight, err_msg=path)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""], ids=["checkpoint", "bare"])
@pytest.mark.parametrize("name", NETS)
def test_an_ldm_file_is_the_model_that_diffusers_reads(name, prefix, tmp_path):
    unet = builders.build_unet(NETS[name])
    state = checkpoints.ldm_state(unet, prefix)
    read_by_diffusers = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{key.removeprefix(prefix)}": t for key, t in state.items()},
        dict(unet.config),
    )
    if GUIDANCE in unet.state_dict():
        read_by_diffusers[GUIDANCE] = state[f"{prefix}time_embed.cond_proj.weight"]
    assert read_by_diffusers.keys() == unet.state_dict().keys()
    for key, tensor in unet.state_dict().items():
        assert torch.equal(read_by_diffusers[key], tensor), key

    vae = {"first_stage_model.encoder.conv_in.weight": torch.ones(2, 3, 3, 3)}
    file = checkpoints.save_single_file(tmp_path / "net.safetensors", state, vae)
    model = load_base_model(file)
    assert_holds(model, "unet", unet)
    folder = load_base_model(builders.save_folder(unet, tmp_path / "net"))
    assert model.spec == folder.spec
    assert list(model.spec.modules) == list(folder.spec.modules)
    paths = list(model.spec.modules)[::7]
    assert [model.fingerprint(p) for p in paths] == [folder.fingerprint(p) for p in paths]


def test_text_encoders_of_an_xl_file(tmp_path):
    unet = builders.build_unet(builders.TINY_XL)
    first = checkpoints.text_encoder()
    second = checkpoints.text_encoder(layers=3, projected=True, seed=1)
    clip = {f"{CLIP}{key}": t for key, t in checkpoints.text_state(first).items()}
    open_clip = checkpoints.open_clip_state(second, OPEN_CLIP)
    for encoder, read in (
        (first, convert_ldm_clip_checkpoint(clip)),
        (second, convert_open_clip_checkpoint(second, open_clip, prefix=OPEN_CLIP)),
    ):
        for key, tensor in checkpoints.text_state(encoder).items():
            assert torch.equal(read[key], tensor), key

    file = tmp_path / "xl.safetensors"
    checkpoints.save_single_file(file, checkpoints.ldm_state(unet), clip, open_clip)
    model = load_base_model(file)
    assert_holds(model, "unet", unet)
    assert_holds(model, "text_encoder", first)
    assert_holds(model, "text_encoder_2", second)
    # A part of a fused tensor is a weight like any other.
    whole = checkpoints.save_single_file(
        tmp_path / "split.safetensors",
        {f"unet.{key}": tensor for key, tensor in unet.state_dict().items()},
        {f"text_encoder.{key}": tensor for key, tensor in first.state_dict().items()},
        {f"text_encoder_2.{key}": tensor for key, tensor in second.state_dict().items()},
    )
    split = load_base_model(whole)
    assert split.spec.modules == model.spec.modules
    for path in model.spec.component("text_encoder_2"):
        assert model.fingerprint(path) == split.fingerprint(path), path


@pytest.mark.parametrize("names", ["text_model.", ""], ids=["level", "no-level"])
def test_text_encoder_of_an_sd1_file(names, tmp_path):
    unet, encoder = builders.build_unet(builders.TINY_SD15), checkpoints.text_encoder()
    clip = {
        f"cond_stage_model.transformer.{names}{key.removeprefix('text_model.')}": tensor
        for key, tensor in checkpoints.text_state(encoder).items()
    }
    file = tmp_path / "sd1.safetensors"
    checkpoints.save_single_file(file, checkpoints.ldm_state(unet), clip)
    assert_holds(load_base_model(file), "text_encoder", encoder)


def test_text_encoder_of_an_sd2_file_ends_before_its_last_layer(tmp_path):
    unet = builders.build_unet(builders.TINY_SD15)
    encoder = checkpoints.text_encoder(layers=24, projected=True)
    state = checkpoints.open_clip_state(encoder, SD2)
    read = convert_open_clip_checkpoint(encoder, state, prefix=SD2)
    file = tmp_path / "sd2.safetensors"
    checkpoints.save_single_file(file, checkpoints.ldm_state(unet), state)
    model = load_base_model(file)
    layers = {path.split(".")[4] for path in model.spec.component("text_encoder")}
    assert (
        layers
        == {str(i) for i in range(23)}
        == {key.split(".")[3] for key in read if ".layers." in key}
    )
    path = "text_model.encoder.layers.22.self_attn.v_proj"
    assert_array_equal(model.weight(f"text_encoder.{path}"), read[f"{path}.weight"].numpy())
    assert "text_encoder.text_projection" not in model.spec.modules


def test_the_refiners_encoder_is_the_second_one(tmp_path):
    unet = builders.build_unet(builders.TINY_XL)
    encoder = checkpoints.text_encoder(projected=True)
    state = checkpoints.open_clip_state(encoder, "conditioner.embedders.0.model.")
    file = tmp_path / "refiner.safetensors"
    checkpoints.save_single_file(file, checkpoints.ldm_state(unet), state)
    model = load_base_model(file)
    assert_holds(model, "text_encoder_2", encoder)
    assert not model.spec.component("text_encoder")


# Layouts that no published model has, beside all published ones.
LAYOUTS = dict(CONFIGS) | {
    "three-layers": UNetTensors((8, 16), down_depths=(1, 0), up_depths=(2, 1), layers_per_block=3),
    "one-block": UNetTensors((8,), down_depths=(1,), up_depths=(0,)),
    "five-blocks": UNetTensors((8,) * 5, (0, 1, 0, 1, 0), (1, 0, 0, 1, 1), layers_per_block=1),
    "no-middle": replace(CONFIGS["sd15"], mid=None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_of_every_layout_are_read_back(name):
    paths = [f"unet.{key.rsplit('.', 1)[0]}" for key in unet_table(LAYOUTS[name])]
    names = ldm_paths(paths)
    assert names.keys() == set(paths)
    assert paths_of_ldm_names(set(names.values())) == {ldm: path for path, ldm in names.items()}


def test_blocks_that_no_layout_explains_are_refused(tmp_path):
    state = checkpoints.ldm_state(builders.build_unet(builders.TINY_SD15))
    strange = {"model.diffusion_model.output_blocks.0.7.weight": torch.ones(2, 2)}
    file = checkpoints.save_single_file(tmp_path / "strange.safetensors", state, strange)
    match = r"a checkpoint in LDM naming with blocks of no known layout .*; convert it to a diff"
    with pytest.raises(BaseModelError, match=match) as caught:
        load_base_model(file)
    assert caught.value.code is Refusal.UNREADABLE_BASE
    assert str(file) in str(caught.value)


def test_eight_bit_floats_of_an_ldm_file(tmp_path):
    state = checkpoints.ldm_state(builders.build_unet(builders.TINY_SD15))
    key = "model.diffusion_model.middle_block.1.proj_in.weight"
    narrow = state | {key: state[key].to(torch.float8_e4m3fn)}
    model = load_base_model(checkpoints.save_single_file(tmp_path / "a.safetensors", narrow))
    matrix = model.matrix("unet.mid_block.attentions.0.proj_in")
    assert matrix.dtype == np.float32
    assert_array_equal(matrix, narrow[key].float().numpy().reshape(matrix.shape))
