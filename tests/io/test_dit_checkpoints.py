"""Weights of diffusion transformers, read from every naming and packing: the same numbers.

Where the rows of a weight are in the authors' file is what diffusers' own converter says
(`dit_tables`); what packed numbers stand for is torch's cast and product, and gguf's unpacking.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from dit_tables import in_original_naming, modules, tiny, weights
from numpy.testing import assert_array_equal
from packed_fixtures import fixture
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model

WIDTH = 32
FLUX = weights(tiny("flux"))
ORIGINAL = in_original_naming(FLUX, "flux1_dev", WIDTH)
QKV = "double_blocks.1.img_attn.qkv.weight"
WEIGHTS = {
    f"transformer.{key.removesuffix('.weight')}": value
    for key, value in FLUX.items()
    if key.endswith(".weight") and value.ndim == 2
}
PREFIX = "model.diffusion_model."
FIXED = "model.layers.0.self_attn.q_proj"


def save(file: Path, tensors: Mapping[str, np.ndarray], prefix: str = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({prefix + key: np.ascontiguousarray(value) for key, value in tensors.items()}, file)
    return file


def assert_holds(model: BaseModel, want: Mapping[str, np.ndarray]) -> None:
    assert set(model.spec.modules) == set(want)
    for path, weight in want.items():
        assert model.spec.modules[path].shape == weight.shape
        assert_array_equal(model.matrix(path), weight.astype(np.float32))
        flat = np.concatenate([*model.numbers(path, 77)])
        assert_array_equal(flat, weight.reshape(-1))


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> BaseModel:
    return load_base_model(save(tmp_path_factory.mktemp("flux") / "flux.safetensors", FLUX))


def test_both_namings_have_the_same_weights(flux, tmp_path):
    biases = {"final_layer.adaLN_modulation.1.bias": np.arange(64, dtype=np.float32)}
    file = save(tmp_path / "flux.safetensors", ORIGINAL | biases, PREFIX)
    original = load_base_model(file)
    assert_holds(flux, WEIGHTS)
    assert_holds(original, WEIGHTS)
    assert original.spec == flux.spec
    assert original.fingerprints(WEIGHTS) == flux.fingerprints(WEIGHTS)
    assert {original.is_streamed(path) for path in WEIGHTS} == {True}
    halves = original.bias("transformer.norm_out.linear")
    assert halves is not None
    assert_array_equal(halves, np.roll(np.arange(64), 32))
    # The step ends within a half: parts of one length are what two models are compared by.
    lengths = [len(part) for part in original.numbers("transformer.norm_out.linear", 600)]
    assert lengths == [600, 600, 600, 248]


def test_attention_is_told_from_the_rest(flux):
    kinds = {path: module.kind_is("attn") for path, module in flux.spec.modules.items()}
    assert kinds["transformer.transformer_blocks.0.attn.to_add_out"]
    assert kinds["transformer.single_transformer_blocks.1.attn.to_q"]
    assert sum(kinds.values()) == 2 * 8 + 2 * 3


@pytest.mark.parametrize("end", ["scale_weight", "weight_scale"])
def test_scaled_floats_of_eight_bits(end, tmp_path):
    packed, numbers = dict(ORIGINAL), dict(ORIGINAL)
    for key in (QKV, "final_layer.adaLN_modulation.1.weight"):
        packed[key] = (4 * ORIGINAL[key]).astype(ml_dtypes.float8_e4m3fn)
        numbers[key] = packed[key].astype(np.float32) * np.float32(0.25)
        packed[f"{key.removesuffix('.weight')}.{end}"] = np.array(0.25, np.float32)
    model = load_base_model(save(tmp_path / "fp8.safetensors", packed, PREFIX))
    plain = load_base_model(save(tmp_path / "plain.safetensors", numbers))
    assert_holds(model, {path: plain.matrix(path) for path in WEIGHTS})
    assert (model.packing("transformer.transformer_blocks.1.attn.to_k") or "").startswith("fp8")


def test_missing_scales_are_refused(tmp_path):
    packed = ORIGINAL | {QKV: ORIGINAL[QKV].astype(ml_dtypes.float8_e4m3fn)}
    packed |= {"scaled_fp8": np.zeros(2, ml_dtypes.float8_e4m3fn)}
    with pytest.raises(
        BaseModelError, match=r"double_blocks\.1\.img_attn\.qkv.*expected"
    ) as caught:
        load_base_model(save(tmp_path / "fp8.safetensors", packed, PREFIX))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "F16"])
def test_gguf(kind, tmp_path):
    quantisation = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "flux.gguf", "flux")
    numbers = {}
    for key, value in ORIGINAL.items():
        if value.shape[1] % 32:
            writer.add_tensor(key, value)
            numbers[key] = value
            continue
        held = gguf.quants.quantize(value, quantisation)
        writer.add_tensor(key, held, raw_dtype=quantisation)
        numbers[key] = gguf.quants.dequantize(held, quantisation)
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    plain = load_base_model(save(tmp_path / "plain.safetensors", numbers))
    model = load_base_model(tmp_path / "flux.gguf")
    assert_holds(model, {path: plain.matrix(path) for path in WEIGHTS})


def test_a_module_under_two_names(tmp_path):
    twice = ORIGINAL | {
        f"transformer_blocks.1.attn.to_{one}.weight": FLUX[
            f"transformer_blocks.1.attn.to_{one}.weight"
        ]
        for one in "qkv"
    }
    model = load_base_model(save(tmp_path / "equal.safetensors", twice))
    assert_holds(model, WEIGHTS)
    twice["transformer_blocks.1.attn.to_k.weight"] = np.zeros((WIDTH, WIDTH), np.float32)
    file = save(tmp_path / "unlike.safetensors", twice)
    with pytest.raises(
        BaseModelError, match=r"attn\.to_k: found it in .*; take the other"
    ) as caught:
        load_base_model(file)
    assert caught.value.code is Refusal.DUPLICATE_MODULE


def test_a_pipeline_with_two_experts_in_shards(tmp_path):
    shapes = tiny("wan")
    want = {}
    for number, component in enumerate(("transformer", "transformer_2")):
        tensors = weights(shapes, number)
        folder, names = tmp_path / "wan" / component, sorted(tensors)
        files = {key: f"{'ab'[i % 2]}.safetensors" for i, key in enumerate(names)}
        for file in set(files.values()):
            save(folder / file, {key: tensors[key] for key in names if files[key] == file})
        index = folder / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": files}))
        want |= {
            f"{component}.{key.removesuffix('.weight')}": tensors[key]
            for key in modules(shapes)
            if key.endswith(".weight")
        }
    model = load_base_model(tmp_path / "wan")
    assert_holds(model, want)
    alone = load_base_model(tmp_path / "wan" / "transformer")
    assert alone.spec.name == model.spec.name == "wan"
    assert set(alone.spec.modules) == set(model.spec.component("transformer"))
    (tmp_path / "wan" / "transformer_2" / "a.safetensors").unlink()
    with pytest.raises(BaseModelError, match="1 of 2 shards are missing, first a.safetensors"):
        load_base_model(tmp_path / "wan")


@pytest.mark.parametrize(
    "packing",
    [
        *("nf4", "nf4_twice", "fp4_stored_as_bf16", "int8"),
        *("qint8", "qfloat8", "torchao_int8", "torchao_float8"),
    ],
)
def test_halves_of_a_fused_weight_that_another_library_has_packed(packing, tmp_path):
    """A half may begin within a block of numbers that have one scale."""
    held, name = fixture(packing), "blocks.0.cross_attn.kv_linear"
    tensors, metadata = {}, {}
    for key, tensor in held.tensors.items():
        if key.startswith(FIXED):
            tensors[name + key.removeprefix(FIXED)] = tensor
    for key, value in held.metadata.items():
        metadata[key.replace(FIXED, name)] = value.replace(FIXED, name)
    torch_save(tensors, tmp_path / "packed.safetensors", metadata)
    model = load_base_model(tmp_path / "packed.safetensors")
    want = held.floats[FIXED].float().numpy()
    for half, one in zip(np.split(want, 2), ("to_k", "to_v"), strict=True):
        ours = f"transformer.transformer_blocks.0.attn2.{one}"
        assert_array_equal(model.matrix(ours), half)
        flat = np.concatenate([*model.numbers(ours, 101)]).astype(np.float32)
        assert_array_equal(flat, half.reshape(-1))
    assert len(model.spec.modules) == 2
