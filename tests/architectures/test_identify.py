"""Published models recognised from names and shapes; their text encoders against transformers."""

from dataclasses import replace

import builders  # noqa: F401 (quietens transformers before it is imported)
import checkpoints
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from prolora_jax.architectures.clip.table import ENCODERS_OF, TEXT_ENCODERS, text_encoder_table
from prolora_jax.architectures.identify import identified, published_spec, spec_from_config
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.architectures.unet.published import CONFIGS

# The published text encoders, in transformers' words; SD 2's has 23 layers there.
PUBLISHED = {
    "clip-l": (CLIPTextModel, {"hidden_size": 768, "num_hidden_layers": 12}),
    "openclip-h": (CLIPTextModel, {"hidden_size": 1024, "num_hidden_layers": 23}),
    "openclip-bigg": (
        CLIPTextModelWithProjection,
        {"hidden_size": 1280, "num_hidden_layers": 32, "projection_dim": 1280},
    ),
}
LAYER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("name", PUBLISHED)
def test_encoder_tables_equal_transformers(name):
    kind, options = PUBLISHED[name]
    with torch.device("meta"):
        encoder = kind(CLIPTextConfig(intermediate_size=4 * options["hidden_size"], **options))
    state = checkpoints.text_state(encoder)
    shapes = {key: tuple(weight.shape) for key, weight in state.items()}
    assert text_encoder_table(TEXT_ENCODERS[name]) == shapes


@pytest.mark.parametrize("name", CONFIGS)
def test_every_published_model_is_recognised(name):
    spec = identified(spec_from_config(CONFIGS[name], name="renamed"))
    assert (spec.name, spec.architecture, spec.family) == ("renamed", name, name)
    assert spec.differences == ()
    assert spec.text_encoders == tuple(ENCODERS_OF[name].values())


def test_text_encoders_of_the_families():
    assert published_spec("koala-1b").text_encoders == ("clip-l", "openclip-bigg")
    assert published_spec("bk-sdm-tiny").text_encoders == ("clip-l",)
    assert published_spec("sd21").text_encoders == ("openclip-h",)


def test_other_widths_are_another_architecture():
    config = replace(CONFIGS["sd15"], block_out_channels=(64, 128, 256, 256))
    spec = identified(spec_from_config(config, name="other"))
    assert (spec.family, spec.architecture, spec.differences) == (None, None, ())
    assert spec.text_encoders == ()


def test_encoders_at_hand_are_recognised_beside_an_unknown_unet():
    known = published_spec("sdxl", text_encoders=True)
    text = {p: m for p, m in known.modules.items() if not p.startswith("unet.")}
    unet = ModuleSpec("unet.conv_in", (8, 4, 3, 3))
    spec = identified(BaseModelSpec("toy", {unet.path: unet} | text))
    assert spec.architecture is None
    assert spec.text_encoders == ("clip-l", "openclip-bigg")
    del text[LAYER]
    assert identified(BaseModelSpec("toy", text)).text_encoders == ("openclip-bigg",)


def test_modules_of_text_encoders():
    spec = published_spec("sdxl", text_encoders=True)
    assert spec.architecture == "sdxl"
    assert spec.modules[LAYER].shape == (768, 768)
    assert spec.modules["text_encoder_2.text_projection"].shape == (1280, 1280)
    # Six linear layers each; one has a projection, too.
    counts = {name: len(spec.component(name)) for name in ("text_encoder", "text_encoder_2")}
    assert counts == {"text_encoder": 12 * 6, "text_encoder_2": 32 * 6 + 1}
    assert len(spec.component("unet")) == 794
    assert spec.flat_names("text_encoder")["text_model_encoder_layers_0_self_attn_q_proj"] == LAYER
    # Kohya's names of the UNet stay those of the UNet.
    assert len(spec.by_flat_name) == 2 * 794
    assert spec.modules[LAYER].kind_is("linear")
    assert not spec.modules[LAYER].kind_is("attn")


def test_an_unknown_id_is_a_key_error():
    with pytest.raises(KeyError, match="sd-0"):
        published_spec("sd-0")
