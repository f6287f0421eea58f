"""What a conversion keeps: scale, numbers, extras, header."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from builders import TINY_SD15_TABLE, TINY_XL_TABLE, assert_deltas, delta, random_module
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.adapters.formats.keys import FORMATS
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.io.adapters.files import load_adapter, save_adapter

XL = spec_from_config(TINY_XL_TABLE, name="xl")
SD15 = spec_from_config(TINY_SD15_TABLE, name="sd15")
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TO_OUT = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "unet.down_blocks.1.resnets.0.conv1"
POINTWISE = "unet.down_blocks.1.resnets.0.conv_shortcut"


def factors(path: str, **options: Any) -> LoraModule:
    return random_module(path, XL, **options)


# Of alphas -2, none and 8 with ranks 4, 2 and 4, where the file does not keep them as they are.
ALPHAS_AFTERWARDS = {
    "diffusers-old": [None, None, None],
    "diffusers": [None] * 3,
    "peft": [-2.0, 2.0, 8.0],
    "maxdiffusion": [2.0, 4.0, 8.0],
}


def test_each_module_has_its_own_alpha(tmp_path):
    # Diffusers puts the commonest alpha on all attention layers, so it is no oracle here.
    modules = [factors(TO_Q, alpha=-2.0), factors(TO_OUT, rank=2), factors(CONV, alpha=8.0)]
    assert [module.scale for module in modules] == [-0.5, 1.0, 2.0]
    want = {module.path: delta(module) for module in modules}
    for format in FORMATS:
        file = tmp_path / format
        save_adapter(Adapter(tuple(modules), format), file, base=XL)
        again = load_adapter(file, XL)
        assert_deltas(again, want)
        kept = [again.module(m.path).alpha for m in modules]
        assert kept == ALPHAS_AFTERWARDS.get(format, [-2.0, None, 8.0])


@pytest.mark.parametrize("dtype", [np.int64, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alphas_of_any_dtype(dtype, shape):
    tensors, _ = dump(Adapter((factors(TO_Q),), "kohya-ldm"), "kohya-ldm", XL)
    name = next(iter(tensors)).removesuffix(".lora_down.weight")
    adapter = parse(tensors | {f"{name}.alpha": np.full(shape, 8, dtype)}, {}, "f")
    assert adapter.modules[0].scale == 2.0


ALPHAS = st.none() | st.floats(-64, 64).filter(lambda alpha: abs(alpha) > 1e-3)


@settings(deadline=None, max_examples=30)
@given(
    alphas=st.lists(ALPHAS, min_size=4, max_size=4),
    dtype=st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]),
    formats=st.lists(st.sampled_from(FORMATS), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_conversions_keep_the_update(alphas, dtype, formats, order):
    paths = (TO_Q, TO_OUT, CONV, POINTWISE)
    modules = []
    for path, alpha in zip(paths, alphas, strict=True):
        drawn = factors(path, alpha=alpha)
        down, up = drawn.down.astype(dtype), drawn.up.astype(dtype)
        modules.append(LoraModule(path, down, up, alpha))
    adapter = Adapter(tuple(modules), formats[0])
    want = {module.path: delta(module) for module in modules}
    for format in formats:
        tensors, metadata = dump(adapter, format, XL)
        shuffled = list(tensors)
        order.shuffle(shuffled)
        adapter = resolve(parse({key: tensors[key] for key in shuffled}, metadata, "f"), XL)
    # Where the scale went into `up` it was rounded to the file's dtype; and alpha to float32.
    assert_deltas(adapter, want, rtol=4 * float(ml_dtypes.finfo(dtype).eps))
    assert {m.down.dtype for m in adapter.modules} == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_without_alpha_no_byte_changes(dtype, tmp_path):
    drawn = [factors(path) for path in (TO_Q, CONV, POINTWISE)]
    modules = tuple(LoraModule(m.path, m.down.astype(dtype), m.up.astype(dtype)) for m in drawn)
    adapter = Adapter(modules, "kohya-ldm")
    for format in ("diffusers", "kohya-diffusers", "kohya-ldm"):
        save_adapter(adapter, tmp_path / format, format=format, base=XL)
        adapter = load_adapter(tmp_path / format, XL)
    for module in modules:
        again = adapter.module(module.path)
        assert again.down.tobytes() == module.down.tobytes()
        assert again.up.tobytes() == module.up.tobytes()


def test_the_majority_of_unet_modules_names_the_format():
    two = [factors(TO_Q), factors(CONV)]
    mixed = dump(Adapter(tuple(two), "kohya-ldm"), "kohya-ldm", XL)[0]
    mixed |= dump(Adapter((factors(TO_OUT),), "diffusers"), "diffusers", XL)[0]
    te = "lora_te_text_model_encoder_layers_{}_mlp_fc1.lora_{}.weight"
    for i in range(5):
        mixed |= {te.format(i, "down"): two[0].down, te.format(i, "up"): two[0].up}
    assert parse(mixed, {}, "f").format == "kohya-ldm"
    only_text = {key: tensor for key, tensor in mixed.items() if key.startswith("lora_te_")}
    assert parse(only_text, {}, "f").format == "kohya-diffusers"


def test_one_module_under_two_names_is_kept_once(caplog):
    module = factors(TO_Q, alpha=2.0)
    adapter = Adapter((module,), "kohya-ldm")
    twice = dump(adapter, "kohya-ldm", XL)[0] | dump(adapter, "kohya-diffusers", XL)[0]
    assert len(resolve(parse(twice, {}, "f"), XL).modules) == 1
    assert "f: 1 modules occur under two names; one is kept" in caplog.text
    same = {f"{TO_Q}.lora_A.weight": module.down, f"{TO_Q}.lora.down.weight": module.down}
    assert len(parse(same | {f"{TO_Q}.lora_B.weight": module.up}, {}, "f").modules) == 1
    assert f"f: {TO_Q}.lora.down.weight repeats {TO_Q}.lora_A.weight" in caplog.text


def test_extras_are_carried(caplog):
    tensors, _ = dump(Adapter((factors(TO_Q),), "kohya-ldm"), "kohya-ldm", XL)
    extras = {
        "bundle_emb.token.clip_l": np.ones((2, 8), np.float32),
        "lora_unet_mid_block_attentions_0_proj_in.alpha": np.ones((), np.float32),
    }
    adapter = resolve(parse(tensors | extras, {}, "f"), XL)
    assert set(adapter.extras) == set(extras)
    assert "proj_in.alpha belongs to no module; carried along" in caplog.text
    assert extras.keys() <= dump(adapter, "kohya-diffusers", XL)[0].keys()
    # Diffusers refuses a file with an alpha that belongs to nothing.
    kept = dump(adapter, "diffusers", XL)[0].keys()
    assert kept & extras.keys() == {"bundle_emb.token.clip_l"}
    assert "proj_in.alpha belongs to no module; left out" in caplog.text


@pytest.mark.parametrize("path", [TO_Q, POINTWISE])
@pytest.mark.parametrize("axes", [2, 4])
def test_a_window_of_one_may_have_axes_or_not(path, axes):
    module = factors(path)
    down = module.down.reshape(module.down.shape[:2] + (1,) * (axes - 2))
    up = module.up.reshape(module.up.shape[:2] + (1,) * (axes - 2))
    tensors = {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    adapter = resolve(parse(tensors, {}, "f"), XL)
    assert adapter.modules[0].down.shape == down.shape
    written, _ = dump(adapter, "diffusers", XL)  # as the layer has them: diffusers insists on it
    assert written[f"{path}.lora_A.weight"].shape == module.down.shape
    assert written[f"{path}.lora_B.weight"].shape == module.up.shape


def test_kohya_alphas_are_float32_scalars(tmp_path):
    save_adapter(Adapter((factors(TO_Q, alpha=3.0),), "kohya-ldm"), tmp_path / "out", base=XL)
    alphas = [t for key, t in load_file(tmp_path / "out").items() if key.endswith(".alpha")]
    assert [(a.dtype, a.shape, float(a)) for a in alphas] == [(np.dtype(np.float32), (), 3.0)]


def test_kohya_names_of_text_encoders_follow_the_base():
    module = factors(TO_Q)
    te = LoraModule("text_encoder.text_model.encoder.layers.3.mlp.fc1", module.down, module.up)
    flat = "text_model_encoder_layers_3_mlp_fc1.lora_down.weight"
    adapter = Adapter((te,), "kohya-ldm")
    assert f"lora_te1_{flat}" in dump(adapter, "kohya-ldm", XL)[0]
    assert f"lora_te_{flat}" in dump(adapter, "kohya-diffusers", SD15)[0]
