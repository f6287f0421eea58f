"""Models that differ from a published one beside the blocks, as diffusers builds them."""

from dataclasses import replace
from typing import Any

import builders  # noqa: F401 (quietens diffusers before it is imported)
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from unets import PUBLISHED, SD15

from prolora_jax.architectures.clip.table import ENCODERS_OF, encoder_of
from prolora_jax.architectures.identify import identified, published_spec, spec_from_config
from prolora_jax.architectures.likeness import Families, Likeness
from prolora_jax.architectures.recognition import spec_from_shapes
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.family import UNET_SURROUNDINGS
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.spellings import ldm_paths
from prolora_jax.architectures.unet.table import unet_table

COND_PROJ = "extra unet.time_embedding.cond_proj"
NINE, EIGHT, FIVE = (f"unet.conv_in takes {n} channels, not 4" for n in (9, 8, 5))
CLASSES = "extra unet.class_embedding (2 layers)"
LCM = {"time_cond_proj_dim": 256}
KOLORS = {
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "projection_class_embeddings_input_dim": 5632,
}
CHATGLM = (
    "extra unet.encoder_hid_proj",
    "unet.add_embedding.linear_1 takes 5632 channels, not 2816",
)

# As their authors publish them: the family, what their configuration has otherwise, and that in
# our words.
CHANGED: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "lcm-sdxl": ("sdxl", LCM, {COND_PROJ}),
    "lcm-ssd-1b": ("ssd-1b", LCM, {COND_PROJ}),
    "lcm-dreamshaper": ("sd15", LCM, {COND_PROJ}),
    "sdxl-inpainting": ("sdxl", {"in_channels": 9}, {NINE}),
    "sdxl-instructpix2pix": ("sdxl", {"in_channels": 8}, {EIGHT}),
    "sd15-inpainting": ("sd15", {"in_channels": 9}, {NINE}),
    "instructpix2pix": ("sd15", {"in_channels": 8}, {EIGHT}),
    "bk-sdm-base-inpainting": ("bk-sdm-base", {"in_channels": 9}, {NINE}),
    "bk-sdm-small-inpainting": ("bk-sdm-small", {"in_channels": 9}, {NINE}),
    "bk-sdm-tiny-inpainting": ("bk-sdm-tiny", {"in_channels": 9}, {NINE}),
    "sd2-inpainting": ("sd21", {"in_channels": 9}, {NINE}),
    "sd2-depth": ("sd21", {"in_channels": 5}, {FIVE}),
    "sd2-unclip-l": (
        "sd21",
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 1536},
        {CLASSES},
    ),
    "sd2-unclip-h": (
        "sd21",
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048},
        {CLASSES},
    ),
    "kolors": ("sdxl", KOLORS, {*CHATGLM}),
    "kolors-inpainting": ("sdxl", KOLORS | {"in_channels": 9}, {*CHATGLM, NINE}),
    "gligen": (
        "sd15",
        {"attention_type": "gated"},
        {"extra fuser in the blocks of unet", "extra unet.position_net (3 layers)"},
    ),
    "lcm-inpainting": ("sdxl", LCM | {"in_channels": 9}, {COND_PROJ, NINE}),
}
# Nets that no published one is like: another width, another text, another depth.
_X4 = {
    "block_out_channels": (256, 512, 512, 1024),
    "in_channels": 7,
    "num_class_embeds": 1000,
    "only_cross_attention": (True, True, True, False),
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
}
OTHERS = {
    "x4-upscaler": PUBLISHED["sd21"] | _X4,
    "wider text": SD15 | {"cross_attention_dim": 1280},
    "linear projections": SD15 | {"use_linear_projection": True},
    "one block more": SD15 | {"transformer_layers_per_block": (1, 1, 2, 1)},
    "a third resnet": SD15 | {"layers_per_block": 3},
}


def built(config: dict[str, Any], name: str) -> BaseModelSpec:
    """The spec of a UNet that diffusers builds, without its numbers."""
    with torch.device("meta"):
        net = UNet2DConditionModel(**config)
    shapes = {f"unet.{key}": tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    return identified(spec_from_shapes(shapes, name=name))


@pytest.mark.parametrize("name", CHANGED)
def test_a_model_beside_a_family_has_its_id_and_named_differences(name: str):
    family, changes, differences = CHANGED[name]
    spec = built(PUBLISHED[family] | changes, name)
    assert (spec.family, spec.architecture) == (family, None)
    assert set(spec.differences) == differences
    assert len(spec.differences) == len(differences)
    encoders = {} if name.startswith("kolors") else ENCODERS_OF[family]
    assert spec.text_encoders == tuple(encoders.values())
    for component in ("text_encoder", "text_encoder_2"):
        assert encoder_of(spec, f"{component}.text_model.x") == encoders.get(component)
    assert in_ldm_naming(spec) == spec


def in_ldm_naming(spec: BaseModelSpec) -> BaseModelSpec:
    """What a single file of the same model is taken for; LDM keeps the names that it lacks."""
    names = {path: path.removeprefix("unet.") for path in spec.component("unet")}
    names |= ldm_paths(spec.component("unet"))
    shapes = {f"model.diffusion_model.{n}.weight": spec.modules[p].shape for p, n in names.items()}
    return identified(spec_from_shapes(shapes, name=spec.name))


@pytest.mark.parametrize("name", OTHERS)
def test_blocks_that_no_published_model_has_are_of_no_family(name: str):
    spec = built(OTHERS[name], name)
    assert (spec.family, spec.differences, spec.text_encoders) == (None, (), ())
    assert in_ldm_naming(spec) == spec


@pytest.mark.parametrize("name", CONFIGS)
def test_no_published_model_is_of_anothers_family(name: str):
    shapes = {other: unet_shapes(published_spec(other)) for other in CONFIGS}
    assert Families(shapes, UNET_SURROUNDINGS).nearest(shapes[name]) == (Likeness(name),)
    mine = shapes.pop(name)
    assert Families(shapes, UNET_SURROUNDINGS).nearest(mine) == ()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_published_model_keeps_its_family_when_changed(name: str):
    spec = identified(spec_from_config(replace(CONFIGS[name], in_channels=9), name="nine"))
    assert (spec.family, spec.differences) == (name, (NINE,))
    table = unet_table(CONFIGS[name]) | {"time_embedding.cond_proj.weight": (320, 256)}
    spec = identified(spec_from_shapes(table, name="lcm"))
    assert (spec.family, spec.differences) == (name, (COND_PROJ,))


def test_a_layer_that_is_not_there_is_named():
    config = replace(CONFIGS["sdxl"], add_embedding_dim=None)
    spec = identified(spec_from_config(config, name="no sizes"))
    assert spec.family == "sdxl"
    assert spec.differences == tuple(f"no unet.add_embedding.linear_{i}" for i in (1, 2))
    assert spec.text_encoders == ()  # what it has for the pooled text, nobody knows


def test_unknown_layers_beside_the_blocks_may_take_the_text_elsewhere():
    table = unet_table(CONFIGS["sd15"])
    for key, encoders in {
        "reader.proj.weight": (),
        "encoder_hid_proj.weight": (),
        "encoder_hid_proj.image_projection_layers.0.image_embeds.weight": ("clip-l",),
        "down_blocks.0.motion_modules.0.proj_in.weight": ("clip-l",),
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0.weight": ("clip-l",),
    }.items():
        spec = identified(spec_from_shapes(table | {key: (320, 320)}, name="x"))
        assert (spec.family, spec.text_encoders) == ("sd15", encoders), key


def test_encoders_at_hand_count_where_the_family_has_others():
    shapes = {f"unet.{key}": shape for key, shape in unet_table(CONFIGS["sd15"]).items()}
    shapes |= {"unet.encoder_hid_proj.weight": (768, 1024)}
    towers = published_spec("sd21", text_encoders=True)
    text = {f"{p}.weight": m.shape for p, m in towers.modules.items() if p.startswith("text_")}
    spec = identified(spec_from_shapes(shapes | text, name="x"))
    assert (spec.family, spec.text_encoders) == ("sd15", ("openclip-h",))
    assert encoder_of(spec, "text_encoder.text_model.x") == "openclip-h"


BLOCKS = {"mid_block.resnets.0.conv1": (8, 8, 3, 3), "conv_out": (4, 8, 3, 3)}


def test_two_families_that_are_equally_near_are_both_named():
    four, nine = (BLOCKS | {"conv_in": (8, n, 3, 3)} for n in (4, 9))
    families = Families({"plain": four, "inpainting": nine}, UNET_SURROUNDINGS)
    assert families.nearest(nine) == (Likeness("inpainting"),)
    found = families.nearest(BLOCKS | {"conv_in": (8, 5, 3, 3)})
    assert [likeness.family for likeness in found] == ["plain", "inpainting"]
    (found,) = families.nearest(four | {"conv_in.more": (8, 8)})
    assert found == Likeness("plain", ("extra unet.conv_in.more",))
    (found,) = families.nearest(nine | {"conv_out": (4, 8, 1, 1)})
    different = "unet.conv_out has shape (4, 8, 1, 1), not (4, 8, 3, 3)"
    assert found == Likeness("inpainting", (different,))


def test_between_two_families_none_is_guessed(monkeypatch: pytest.MonkeyPatch):
    unet = unet_shapes(published_spec("sd15"))
    known = {"plain": unet, "inpainting": unet | {"conv_in": (320, 9, 3, 3)}}
    families = Families(known, UNET_SURROUNDINGS)
    monkeypatch.setattr("prolora_jax.architectures.identify._families", lambda: families)
    spec = identified(spec_from_config(replace(CONFIGS["sd15"], in_channels=5), name="depth"))
    assert (spec.family, spec.text_encoders) == (None, ())
    assert spec.differences == ("equally near to plain and to inpainting",)


def unet_shapes(spec: BaseModelSpec) -> dict[str, tuple[int, ...]]:
    return {path.removeprefix("unet."): module.shape for path, module in spec.modules.items()}
