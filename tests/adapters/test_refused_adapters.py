"""Every reason to refuse an adapter, with its code and its one-line message."""

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from builders import (
    TINY_SD15_TABLE,
    TINY_SSD_TABLE,
    TINY_XL,
    TINY_XL_TABLE,
    add_lora,
    build_unet,
    random_module,
    save_by_diffusers,
)
from numpy.testing import assert_array_equal
from safetensors.numpy import save_file

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter, save_adapter

XL = spec_from_config(TINY_XL_TABLE, name="tiny-xl")
SSD = spec_from_config(TINY_SSD_TABLE, name="tiny-ssd")
SD15 = spec_from_config(TINY_SD15_TABLE, name="tiny-sd15")
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
DEEP = "unet.mid_block.attentions.0.transformer_blocks.2.attn1.to_q"
CONV = "unet.down_blocks.1.resnets.0.conv1"
FLAT = "lora_unet_" + XL.diffusers_flat(TO_Q)
A, B = f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight"
MODULE = random_module(TO_Q, XL)
GOOD = {A: MODULE.down, B: MODULE.up}
ONE = np.ones((2, 2), np.float32)


def refused(call: Any, code: Refusal, match: str) -> None:
    with pytest.raises(AdapterRefused, match=match) as caught:
        call()
    text = str(caught.value)
    assert caught.value.code is code
    assert text.startswith("a.safetensors: ")
    assert "expected" in text
    assert "; " in text  # the remedy
    assert "\n" not in text


def unparsed(tensors: dict[str, np.ndarray], code: Refusal, match: str, **header: str) -> None:
    refused(lambda: parse(tensors, header, "a.safetensors"), code, match)


def unresolved(adapter: Adapter, spec: Any, code: Refusal, match: str) -> None:
    refused(lambda: resolve(adapter, spec), code, match)


def adapter_of(*modules: LoraModule) -> Adapter:
    return Adapter(modules, "diffusers", origin="a.safetensors")


# --- other algorithms ---

ALGORITHMS = {
    "DoRA": ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight", "magnitude"),
    "LoHa": ("hada_w1_a", "hada_w2_b", "hada_t1"),
    "LoKr": ("lokr_w1", "lokr_w2_a", "lokr_t2"),
    "full-diff": ("diff", "diff_b", "set_weight"),
    "norm": ("w_norm", "b_norm"),
    "IA3": ("on_input", "ia3_l", "ia3_l.default"),
    "OFT": ("oft_diag", "oft_R.weight", "oft_R.default.weight"),
    "BOFT": ("boft_R", "boft_s"),
    "GLoRA": ("a1.weight", "b2.weight", "bm.weight"),
    "LoCon-Tucker": ("lora_mid.weight",),
    "AdaLoRA": ("lora_E", "lora_E.default"),
    "LoRA-bias": ("lora_B.bias", "lora_B.default.bias"),
    "T-LoRA": ("q_layer.weight", "lambda_layer"),
    "VeRA": ("vera_lambda_b", "vera_lambda_d.default"),
    "reshaped-base": ("reshape_weight",),
}
ENDS = [(name, end) for name, ends in ALGORITHMS.items() for end in ends]


@pytest.mark.proves(
    "other algorithms where plain LoRA alone is taken",
    "refused",
    "keys of their own writers",
)
@pytest.mark.parametrize(("name", "end"), ENDS, ids=[end for _, end in ENDS])
@pytest.mark.parametrize("beside", [{}, GOOD], ids=["alone", "beside-lora"])
def test_other_algorithms_are_refused_by_name(name, end, beside):
    key = f"{FLAT}.{end}"
    message = rf"unsupported-algorithm:{name}: found key {key}; expected plain LoRA .*; extract"
    unparsed(beside | {key: ONE}, Refusal.UNSUPPORTED_ALGORITHM, message)


@pytest.mark.parametrize(("axes", "name"), [(3, "OFT"), (4, "BOFT")])
def test_orthogonal_blocks_are_told_apart_by_their_axes(axes, name):
    key = f"{FLAT}.oft_blocks"
    message = f"unsupported-algorithm:{name}: found key {key}"
    unparsed({key: np.ones((1,) * axes)}, Refusal.UNSUPPORTED_ALGORITHM, message)


@pytest.mark.proves("other algorithms where plain LoRA alone is taken", "refused", "peft writes")
def test_peft_writes_dora_and_it_is_refused(tmp_path):
    unet = build_unet(TINY_XL)
    add_lora(unet, use_dora=True)
    file = save_by_diffusers(unet, tmp_path)
    with pytest.raises(AdapterRefused, match="unsupported-algorithm:DoRA: .*lora_magnitude_vec"):
        load_adapter(file)


@pytest.mark.proves("PiSSA, OLoRA, LoftQ, CorDA", "refused", "peft's configuration")
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "loftq", "corda"])
def test_factors_relative_to_a_changed_base_are_refused(start):
    header = json.dumps({"unet.lora_alpha": 4, "unet.init_lora_weights": start})
    message = rf"unsupported-algorithm:{start}: its initialisation changed the base weights"
    unparsed(GOOD, Refusal.UNSUPPORTED_ALGORITHM, message, lora_adapter_metadata=header)


# --- no adapter at all ---

NOT_ADAPTERS = [
    ("empty-file", []),
    ("control-lora", ["lora_controlnet", A, B]),
    ("control-lora", ["input_hint_block.0.weight"]),
    ("controlnet-lllite", ["lllite_unet_input_blocks_4_1.down.0.weight"]),
    ("ip-adapter", ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"]),
    ("motion-module", ["down_blocks.0.motion_modules.0.proj_in.weight"]),
    ("custom-diffusion", ["unet.mid_block.attn2.processor.to_k_custom_diffusion.weight"]),
    ("textual-inversion", ["emb_params"]),
    ("textual-inversion", ["clip_l", "clip_g"]),
    ("textual-inversion", ["string_to_param.*"]),
    ("safeloras", ["unet:0:up", "unet:0:down"]),
    ("checkpoint", ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"]),
    ("checkpoint", ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"]),
    ("checkpoint", ["text_model.encoder.layers.0.mlp.fc1.weight"]),
    ("no-modules", ["bundle_emb.token.clip_l"]),
    ("no-modules", [f"{FLAT}.alpha"]),
]


@pytest.mark.parametrize(("kind", "keys"), NOT_ADAPTERS)
def test_other_files_are_refused_by_name(kind, keys):
    message = rf"not-an-adapter:{kind}: found .*; give an adapter file"
    unparsed(dict.fromkeys(keys, ONE), Refusal.NOT_AN_ADAPTER, message)


def test_unknown_keys_are_listed():
    unknown = {f"key{i}": ONE for i in range(7)}
    message = "7 of 9 keys are unknown, first key0, key1, key2, key3, key4; expected LoRA factors"
    unparsed(GOOD | unknown, Refusal.UNKNOWN_KEYS, message)


CONFIGURATIONS = [
    ("{", "no JSON object"),
    ("[]", "no JSON object"),
    ('{"lora_alpha": "four"}', "could not convert .*four"),
    ('{"lora_alpha": NaN}', f"alpha nan of {TO_Q}"),
    ('{"lora_alpha": 1, "alpha_pattern": {"(": 2}}', "missing \\)"),
    ('{"lora_alpha": 1, "alpha_pattern": [1]}', "no attribute"),
]


@pytest.mark.parametrize(("text", "found"), CONFIGURATIONS)
def test_a_configuration_that_cannot_be_used(text, found):
    message = rf"lora_adapter_metadata .* cannot be used: found .*{found}.*; expected the LoraConf"
    unparsed(GOOD, Refusal.UNKNOWN_KEYS, message, lora_adapter_metadata=text)


# --- damaged pairs ---


@pytest.mark.parametrize(("key", "missing"), [(A, "up"), (B, "down")])
def test_half_a_pair(key, missing):
    message = f"{TO_Q}: the {missing} factor is missing, found only {key}; expected both"
    unparsed({key: GOOD[key]}, Refusal.INCOMPLETE_PAIR, message)


SHAPES = [
    ((4, 32), (32, 5)),  # two ranks
    ((0, 32), (32, 0)),
    ((4,), (32, 4)),
    ((4, 32, 1), (32, 4)),
    ((4, 32), (32, 4, 3, 3)),  # the window belongs to down
]


@pytest.mark.parametrize(("down", "up"), SHAPES, ids=str)
def test_factors_that_do_not_fit_each_other(down, up):
    tensors = {A: np.ones(down, np.float32), B: np.ones(up, np.float32)}
    message = r"found down of shape \(.*\) and up of shape \(.*\); expected \(rank, in"
    unparsed(tensors, Refusal.SHAPE_MISMATCH, message)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_numbers_that_are_none(value, dtype):
    bad = MODULE.up.astype(dtype)
    bad[1, 2] = value
    message = rf"tensor {B} has 1 of {bad.size} numbers that are NaN or infinite; expected finite"
    unparsed(GOOD | {B: bad}, Refusal.NON_FINITE, message)
    extra = {"bundle_emb.x": np.full((2,), value, dtype)}
    unparsed(GOOD | extra, Refusal.NON_FINITE, "tensor bundle_emb.x has 2 of 2 numbers")
    alpha = {f"{TO_Q}.alpha": np.asarray(value, dtype)}
    unparsed(GOOD | alpha, Refusal.NON_FINITE, "to_q.alpha has 1 of 1 numbers")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_factors_that_are_no_floats(dtype):
    message = f"tensor {A} has dtype {np.dtype(dtype).name}; expected float16, bfloat16"
    unparsed(GOOD | {A: np.ones((4, 32), dtype)}, Refusal.UNSUPPORTED_DTYPE, message)


@pytest.mark.parametrize("zero", [np.float32(0), np.int64(0), np.float32(-0.0)])
def test_alpha_zero(zero):
    message = f"{TO_Q}: found alpha 0, .* expected another number; set it to what was meant"
    unparsed(GOOD | {f"{TO_Q}.alpha": np.asarray(zero)}, Refusal.ALPHA_ZERO, message)
    header = json.dumps({"unet.lora_alpha": 0})
    unparsed(GOOD, Refusal.ALPHA_ZERO, message, lora_adapter_metadata=header)


def test_alpha_that_is_no_number():
    message = r"found .*to_q.alpha of shape \(2,\); expected one number"
    unparsed(GOOD | {f"{TO_Q}.alpha": np.ones(2)}, Refusal.SHAPE_MISMATCH, message)


def test_one_module_twice_with_different_numbers():
    other = f"{TO_Q}.lora.down.weight"
    message = f"{TO_Q}: found two different down tensors, {A} and {other}; expected one; remove"
    unparsed(GOOD | {other: MODULE.down + 1}, Refusal.DUPLICATE_MODULE, message)
    flat = {f"{FLAT}.lora_down.weight": MODULE.down, f"{FLAT}.lora_up.weight": MODULE.up + 1}
    parsed = parse(GOOD | flat, {}, "a.safetensors")
    message = f"{TO_Q}: found twice with different numbers, once as {FLAT}; expected one"
    unresolved(parsed, XL, Refusal.DUPLICATE_MODULE, message)
    # The same factors with another scale are another update, too.
    flat = {f"{FLAT}.lora_down.weight": MODULE.down, f"{FLAT}.lora_up.weight": MODULE.up}
    parsed = parse(GOOD | flat | {f"{FLAT}.alpha": np.asarray(1.0)}, {}, "a.safetensors")
    unresolved(parsed, XL, Refusal.DUPLICATE_MODULE, message)


# --- against a base model ---


def test_modules_that_the_base_does_not_have():
    adapter = adapter_of(MODULE, random_module(DEEP, XL))
    message = rf"1/2 modules are not in base model tiny-ssd, first {DEEP}; expected every module"
    unresolved(adapter, SSD, Refusal.UNMATCHED_MODULES, message)


def test_flat_names_that_the_base_does_not_have():
    many = {}
    for i in range(5):
        name = f"lora_unet_input_blocks_{i + 40}_1_proj_in"
        many |= {f"{name}.lora_down.weight": ONE, f"{name}.lora_up.weight": ONE}
    parsed = parse(GOOD | many, {}, "a.safetensors")
    first = ", ".join(f"lora_unet_input_blocks_{i + 40}_1_proj_in" for i in range(3))
    message = f"5/6 modules are not in base model tiny-xl, first {first}; expected every"
    unresolved(parsed, XL, Refusal.UNMATCHED_MODULES, message)


def test_an_adapter_for_another_architecture():
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": ONE, f"{name}.lora_B.weight": ONE}
    message = f"1/1 modules are not in base model tiny-xl, first {name}; expected an adapter for"
    unresolved(parse(tensors, {}, "a.safetensors"), XL, Refusal.NO_MATCHING_MODULE, message)


def test_text_encoders_do_not_count():
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    text = {f"{name}.lora_down.weight": ONE, f"{name}.lora_up.weight": ONE}
    alone = resolve(parse(text, {}, "a.safetensors"), XL)
    assert [m.path for m in alone.modules] == ["text_encoder.text_model.encoder.layers.0.mlp.fc1"]
    strange = {f"{FLAT}x.lora_down.weight": ONE, f"{FLAT}x.lora_up.weight": ONE}
    message = "1/1 modules are not in base model"
    unresolved(parse(text | strange, {}, "a.safetensors"), XL, Refusal.NO_MATCHING_MODULE, message)


def test_factors_that_do_not_fit_the_layer():
    wide = LoraModule(TO_Q, np.ones((4, 64), np.float32), MODULE.up)
    message = (
        rf"{TO_Q}: found down \(4, 64\) and up \(32, 4\); expected down \(4, 32\) and up "
        r"\(32, 4\) for a weight \(32, 32\) of base model tiny-xl \(1/1 modules differ\)"
    )
    unresolved(adapter_of(wide), XL, Refusal.SHAPE_MISMATCH, message)


@pytest.mark.parametrize("window", [(), (1, 1), (3, 1)])
def test_a_window_of_three_is_not_squeezed(window):
    down = np.ones((4, 16, *window), np.float32)
    if window == (3, 1):
        down = down.reshape(4, 16 * 3, 1, 1)
    adapter = adapter_of(LoraModule(CONV, down, np.ones((32, 4, 1, 1), np.float32)))
    message = r"expected down \(4, 16, 3, 3\) and up \(32, 4, 1, 1\) for a weight \(32, 16, 3, 3\)"
    unresolved(adapter, XL, Refusal.SHAPE_MISMATCH, message)


def test_the_widths_of_another_family():
    path = next(path for path in SD15.modules if path.endswith("attn2.to_k"))
    wide = LoraModule(path, np.ones((4, 2048), np.float32), np.ones((16, 4), np.float32))
    unresolved(adapter_of(wide), SD15, Refusal.SHAPE_MISMATCH, r"found down \(4, 2048\)")


# --- writing ---


def test_a_scale_that_does_not_fit_single_precision():
    module = LoraModule(TO_Q, MODULE.down * 1e30, MODULE.up * 1e30, 1e25)
    message = r"scale 2.5e\+24 times up, at most .*, does not fit float32; expected .*; write a"
    refused(lambda: dump(adapter_of(module), "diffusers", XL), Refusal.NON_FINITE, message)
    assert len(dump(adapter_of(module), "kohya-ldm", XL)[0]) == 3


def test_an_unknown_format():
    with pytest.raises(UsageError, match="'ggml' is unknown; expected one of kohya-ldm, ") as e:
        dump(adapter_of(MODULE), "ggml", XL)
    assert e.value.code is Refusal.BAD_OPTION


def test_an_existing_output(tmp_path):
    file = tmp_path / "out.safetensors"
    save_adapter(adapter_of(MODULE), file, base=XL)
    before = file.read_bytes()
    other = adapter_of(random_module(TO_Q, XL, seed=1))
    with pytest.raises(UsageError, match=r"out.safetensors: output exists; .*overwriting") as e:
        save_adapter(other, file, base=XL)
    assert (e.value.code, e.value.exit_code) == (Refusal.OUTPUT_EXISTS, 2)
    assert file.read_bytes() == before
    save_adapter(other, file, base=XL, overwrite=True)
    assert_array_equal(load_adapter(file, XL).modules[0].down, other.modules[0].down)


def test_a_refused_file_names_its_path(tmp_path):
    file = tmp_path / "half.safetensors"
    save_file({A: MODULE.down}, file)
    with pytest.raises(AdapterRefused, match=f"^{file}: {TO_Q}: the up factor is missing"):
        load_adapter(file)
