"""Key conventions: one library writes a file, another says what it adds, ours must agree."""

import json
from pathlib import Path
from typing import Any

import builders
import checkpoints
import numpy as np
import pytest
import torch
from builders import assert_deltas, random_module
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_kohya,
)
from numpy.testing import assert_allclose, assert_array_equal
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file as save_torch
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.adapters.formats.keys import FORMATS
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.naming import flat
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.io.adapters.files import load_adapter, save_adapter

NETS = {
    "xl": (builders.TINY_XL, builders.TINY_XL_TABLE),
    "ssd": (builders.TINY_SSD, builders.TINY_SSD_TABLE),
    "sd15": (builders.TINY_SD15, builders.TINY_SD15_TABLE),
}
SPECS = {name: spec_from_config(table, name=name) for name, (_, table) in NETS.items()}
XL = SPECS["xl"]
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TO_OUT = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
RTOL = 1e-6  # float32 products, rank 4
# Diffusers applies nothing of a file whose keys start with `base_model.model.`, and only warns.
READ_BY_DIFFUSERS = [f for f in FORMATS if f not in {"peft", "flax", "comfyui"}]

PATTERNS: dict[str, Any] = {
    "rank_pattern": {"attn1.to_q": 2, "attn2.to_k": 8},
    "alpha_pattern": {"attn1.to_q": 3, "transformer_blocks.0.attn2.to_v": 1},
}


def net_with_lora(net: str, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    unet = builders.build_unet(NETS[net][0])
    return unet, builders.add_lora(unet, **options)


# --- reading what others write ---


@pytest.mark.proves("diffusers", "read", "diffusers writes, peft computes")
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 6}, {"alpha": 2, "use_rslora": True}, {"alpha": 6} | PATTERNS],
    ids=["plain", "alpha", "rslora", "patterns"],
)
def test_files_of_diffusers(net, options, tmp_path):
    unet, _ = net_with_lora(net, targets=builders.EVERYTHING, **options)
    adapter = load_adapter(builders.save_by_diffusers(unet, tmp_path), SPECS[net])
    assert adapter.format == "diffusers"
    assert_deltas(adapter, builders.deltas_by_peft(unet))


def test_files_of_diffusers_without_a_configuration_have_scale_one(tmp_path):
    unet, _ = net_with_lora("xl", alpha=4)
    adapter = load_adapter(builders.save_by_diffusers(unet, tmp_path, with_config=False), XL)
    assert {module.alpha for module in adapter.modules} == {None}
    assert_deltas(adapter, builders.deltas_by_peft(unet))


def test_files_of_a_bare_unet(tmp_path):
    unet, _ = net_with_lora("xl", alpha=6)
    unet.save_lora_adapter(tmp_path)
    adapter = load_adapter(tmp_path / "pytorch_lora_weights.safetensors", XL)
    assert_deltas(adapter, builders.deltas_by_peft(unet))


@pytest.mark.proves("diffusers, mixed suffixes", "read", "diffusers writes, peft computes")
@pytest.mark.parametrize("net", NETS)
def test_files_that_mix_two_suffixes(net, tmp_path):
    # Diffusers' own conversion writes `.lora.down` for attention and `.lora_A` for the rest, and
    # its own reader then drops one of the two.
    unet, state = net_with_lora(net, targets=builders.EVERYTHING)
    mixed: dict[str, Any] = convert_state_dict_to_diffusers(state)
    assert {key.split(".lora", 1)[1].split(".")[0] for key in mixed} == {"", "_A", "_B"}
    file = tmp_path / "mixed.safetensors"
    save_torch({f"unet.{key}": tensor.contiguous() for key, tensor in mixed.items()}, file)
    adapter = load_adapter(file, SPECS[net])
    assert_deltas(adapter, builders.deltas_by_peft(unet))


@pytest.mark.proves("kohya-diffusers", "read", "diffusers writes, peft computes")
@pytest.mark.parametrize("net", NETS)
def test_kohya_keys_with_diffusers_blocks(net, tmp_path):
    unet, state = net_with_lora(net, targets=builders.EVERYTHING)
    kohya: dict[str, Any] = convert_state_dict_to_kohya(
        {f"unet.{key}": tensor for key, tensor in state.items()}
    )
    file = tmp_path / "kohya.safetensors"
    save_torch({key: tensor.contiguous() for key, tensor in kohya.items()}, file)
    adapter = load_adapter(file, SPECS[net])
    assert adapter.format == "kohya-diffusers"
    assert {module.alpha for module in adapter.modules} == {4.0}  # an int64 in the file
    assert_deltas(adapter, builders.deltas_by_peft(unet))


@pytest.mark.proves("peft", "read", "peft writes and computes")
def test_a_folder_of_peft(tmp_path):
    unet, state = net_with_lora("xl", alpha=6, **PATTERNS)
    file = tmp_path / "adapter_model.safetensors"
    save_torch({f"base_model.model.{key}": tensor for key, tensor in state.items()}, file)
    config = json.loads(json.dumps(unet.peft_config["default"].to_dict(), default=list))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert_deltas(load_adapter(file, XL), builders.deltas_by_peft(unet))


def test_a_file_of_peft_without_its_configuration_is_said_to_be(tmp_path, caplog):
    _, state = net_with_lora("xl")
    file = tmp_path / "adapter_model.safetensors"
    save_torch({f"base_model.model.{key}": tensor for key, tensor in state.items()}, file)
    assert {module.scale for module in load_adapter(file, XL).modules} == {1.0}
    assert "no adapter_config.json beside it; its scale is taken to be 1" in caplog.text


DOTTED = TO_Q.removeprefix("unet.")
LDM = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
SPELLINGS = [
    (f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight"),
    (f"{TO_Q}.lora_A.default_0.weight", f"{TO_Q}.lora_B.default_0.weight"),
    (f"{TO_Q}.lora_A", f"{TO_Q}.lora_B"),
    (f"{TO_Q}.lora.down.weight", f"{TO_Q}.lora.up.weight"),
    (f"{TO_Q}.lora_down.weight", f"{TO_Q}.lora_up.weight"),
    (f"{DOTTED}.lora_A.weight", f"{DOTTED}.lora_B.weight"),
    (f"base_model.model.{DOTTED}.lora_A.weight", f"base_model.model.{DOTTED}.lora_B.weight"),
    (f"unet.base_model.model.{DOTTED}.lora_A.weight", f"{TO_Q}.lora_B.weight"),
    (
        TO_Q.replace("to_q", "processor.to_q_lora.down.weight"),
        TO_Q.replace("to_q", "processor.to_q_lora.up.weight"),
    ),
    (f"diffusion_model.{LDM}.lora_A.weight", f"diffusion_model.{LDM}.lora_B.weight"),
    (f"lora_unet_{flat(LDM)}.lora_down.weight", f"lora_unet_{flat(LDM)}.lora_up.weight"),
    (f"lora_unet_{flat(DOTTED)}.lora_down.weight", f"lora_unet_{flat(DOTTED)}.lora_up.weight"),
]


@pytest.mark.parametrize("keys", SPELLINGS, ids=[keys[0] for keys in SPELLINGS])
def test_every_spelling_of_one_module(keys):
    module = random_module(TO_Q, XL)
    adapter = resolve(parse(dict(zip(keys, (module.down, module.up), strict=True)), {}, "f"), XL)
    assert [m.path for m in adapter.modules] == [TO_Q]
    assert_array_equal(adapter.modules[0].down, module.down)
    assert_array_equal(adapter.modules[0].up, module.up)


def test_the_oldest_keys_hide_the_output_projections_number():
    module = random_module(TO_OUT, XL)
    old = TO_OUT.replace("to_out.0", "processor.to_out_lora")
    tensors = {f"{old}.down.weight": module.down, f"{old}.up.weight": module.up}
    assert resolve(parse(tensors, {}, "f"), XL).modules[0].path == TO_OUT


# --- writing what others read ---


@pytest.mark.proves("kohya-ldm", "read", "diffusers computes")
@pytest.mark.proves("kohya-ldm", "write", "diffusers loads and fuses")
@pytest.mark.proves("kohya-diffusers", "write", "diffusers loads and fuses")
@pytest.mark.proves("diffusers", "write", "diffusers loads and fuses")
@pytest.mark.parametrize("format", READ_BY_DIFFUSERS)
@pytest.mark.parametrize("net", NETS)
def test_diffusers_reads_what_is_written(net, format, tmp_path):
    unet, _ = net_with_lora(net, targets=builders.EVERYTHING, alpha=6)
    adapter = load_adapter(builders.save_by_diffusers(unet, tmp_path), SPECS[net])
    file = tmp_path / "out.safetensors"
    save_adapter(adapter, file, format=format, base=SPECS[net])
    want = builders.deltas_by_diffusers(NETS[net][0], file)
    assert_deltas(adapter, want)
    assert_deltas(load_adapter(file, SPECS[net]), want)
    if format != "maxdiffusion":  # which looks like kohya's
        assert load_adapter(file).format == format


@pytest.mark.parametrize("name", ["sd15", "sdxl", "koala-700m"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_layer_of_a_real_net_comes_back(name, format):
    # Also those whose LDM names diffusers gets wrong (the upsampler of a block without attention).
    spec = spec_from_config(CONFIGS[name], name=name)
    ones = np.ones(1, np.float32)
    modules = []
    for path, module in spec.modules.items():
        out, *rest = module.shape
        down = np.broadcast_to(ones, (1, *rest))
        up = np.broadcast_to(ones, (out, 1, *(1 for _ in rest[1:])))
        modules.append(LoraModule(path, down, up))
    tensors, metadata = dump(Adapter(tuple(modules), format), format, spec)
    assert len(tensors) == (3 if format == "maxdiffusion" else 2) * len(modules)
    again = resolve(parse(tensors, metadata, "f"), spec)
    assert [module.path for module in again.modules] == list(spec.modules)


@pytest.mark.proves("text encoders", "write", "diffusers loads and fuses")
@pytest.mark.parametrize("format", READ_BY_DIFFUSERS)
def test_text_encoders_come_along(format, tmp_path):
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    layers = {
        key.removesuffix(".weight"): tuple(weight.shape)
        for key, weight in checkpoints.text_state(CLIPTextModel(config)).items()
        if ".layers." in key and weight.ndim == 2
    }
    rng = np.random.default_rng(0)
    modules = [random_module(TO_Q, XL, alpha=2.0)]
    # Of files with alphas of their own diffusers gives most modules of a text encoder one of them.
    scales = ((4, 2.0), (2, 3.0), (8, 1.0)) if format.startswith("diffusers") else ((4, 2.0),)
    for component in ("text_encoder", "text_encoder_2"):
        for i, (name, (out, width)) in enumerate(layers.items()):
            rank, alpha = scales[i % len(scales)]
            down = rng.standard_normal((rank, width)).astype(np.float32)
            up = rng.standard_normal((out, rank)).astype(np.float32)
            modules.append(LoraModule(f"{component}.{name}", down, up, alpha))
    adapter = Adapter(tuple(modules), format)
    file = tmp_path / "out.safetensors"
    save_adapter(adapter, file, base=XL)
    again = load_adapter(file, XL)
    assert {m.path for m in again.modules} == {m.path for m in modules}
    for component in ("text_encoder", "text_encoder_2"):
        want = text_deltas_by_diffusers(config, file, component)
        assert set(want) == {f"{component}.{name}" for name in layers}
        for path, matrix in want.items():
            assert_allclose(builders.delta(again.module(path)), matrix, rtol=RTOL, atol=RTOL)


def text_deltas_by_diffusers(config: CLIPTextConfig, file: Path, prefix: str) -> dict[str, Any]:
    encoder = CLIPTextModel(config)
    names = dict(zip(encoder.state_dict(), checkpoints.text_state(encoder), strict=True))
    unet = builders.build_unet(builders.TINY_XL)
    read: Any = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
        str(file), unet_config=unet.config, return_lora_metadata=True
    )
    StableDiffusionXLLoraLoaderMixin.load_lora_into_text_encoder(
        read[0], network_alphas=read[1], text_encoder=encoder, prefix=prefix, metadata=read[2]
    )
    layers: dict[str, Any] = {
        f"{prefix}.{names[f'{name}.weight'].removesuffix('.weight')}": layer
        for name, layer in encoder.named_modules()
        if isinstance(layer, LoraLayer)
    }
    return {
        path: layer.get_delta_weight(layer.active_adapters[0]).detach().numpy()
        for path, layer in layers.items()
    }
