"""Base models in floats of 8 bits; the oracle is torch's own cast and product."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from packed_models import DOWN, Q, Tensors, linear_weights, llama, save_packed, save_plain
from safetensors.torch import save_file

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MARKER = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}


def scaled(
    weight: torch.Tensor, kind: str, block: tuple[int, int] = (128, 128)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers, scale, and the floats that they stand for."""
    most = 448.0
    if kind == "tensor":
        scale = weight.abs().max() / most
        wide = scale
    elif kind == "rows":
        scale = weight.abs().amax(1, keepdim=True) / most
        wide = scale
    else:
        scale = torch.rand(-(-weight.shape[0] // block[0]), -(-weight.shape[1] // block[1])) + 0.5
        wide = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        wide = wide[: weight.shape[0], : weight.shape[1]]
    numbers = (weight / wide).to(E4M3)
    return numbers, scale, numbers.float() * wide


def text(content: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def assert_holds(model: BaseModel, want: Tensors) -> None:
    """Whole, as a matrix, and in parts of awkward sizes."""
    for name, weight in want.items():
        path = f"lm.{name}"
        assert model.spec.modules[path].shape == weight.shape
        assert_array_equal(model.weight(path), weight.numpy())
        assert_array_equal(model.matrix(path), weight.numpy())
        assert_array_equal(np.concatenate([*model.numbers(path, 77)]), weight.numpy().reshape(-1))


@pytest.mark.parametrize("kind", ["tensor", "rows", "blocks"])
@pytest.mark.parametrize("end", ["weight_scale", "weight_scale_inv", "scale_weight"])
def test_scaled(tmp_path: Path, kind: str, end: str):
    def pack(name: str, weight: torch.Tensor) -> Tensors:
        numbers, scale, _ = scaled(weight, kind, (16, 48))
        return {f"{name}.weight": numbers, f"{name}.{end}": scale, f"{name}.input_scale": 2 * scale}

    config = {"quantization_config": {"weight_block_size": [16, 48]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    model = load_base_model(save_packed(tmp_path / "a.safetensors", pack))
    torch.manual_seed(1)
    want = {n: scaled(w, kind, (16, 48))[2] for n, w in linear_weights(llama()).items()}
    assert_holds(model, want)
    assert (
        model.spec.modules == load_base_model(save_plain(tmp_path / "b.safetensors")).spec.modules
    )
    assert model.is_streamed(Q)
    assert (model.packing(Q) or "").startswith(f"fp8 by {kind}")
    assert model.packing("lm.lm_head") is None
    assert model.packings == {model.packing(Q): 14}


def test_the_last_block_may_be_cut_off(tmp_path: Path):
    """160 columns are a block of 128 and one of 32."""
    numbers, scale, want = scaled(llama()["model.layers.1.mlp.down_proj.weight"], "blocks")
    assert scale.shape == (1, 2)
    assert not torch.equal(scale[0, 0], scale[0, 1])
    tensors = {
        **llama(),
        "model.layers.1.mlp.down_proj.weight": numbers,
        "model.layers.1.mlp.down_proj.weight_scale_inv": scale,
    }
    save_file(tensors, tmp_path / "a.safetensors")
    assert_array_equal(load_base_model(tmp_path / "a.safetensors").matrix(DOWN), want.numpy())


def test_comfyuis_markers(tmp_path: Path):
    def pack(name: str, weight: torch.Tensor) -> Tensors:
        numbers, scale, _ = scaled(weight, "tensor")
        return {
            f"{name}.weight": numbers,
            f"{name}.weight_scale": scale,
            f"{name}.comfy_quant": text(MARKER),
        }

    file = save_packed(tmp_path / "a.safetensors", pack)
    want = {n: scaled(w, "tensor")[2] for n, w in linear_weights(llama()).items()}
    assert_holds(load_base_model(file), want)


def other(marker: object) -> dict[str, torch.Tensor]:
    numbers, scale, _ = scaled(torch.ones(64, 64), "tensor")
    name = "model.layers.0.self_attn.q_proj"
    return {
        f"{name}.weight": numbers,
        f"{name}.weight_scale": scale,
        f"{name}.comfy_quant": text(marker),
    }


Q_PROJ = "model.layers.0.self_attn.q_proj"
BAD = {
    "another format": (
        other({"format": "nvfp4"}),
        r'q_proj: found comfy_quant \{"format": "nvfp4"\}; expected a format of float8_e4m3fn',
    ),
    "a rotation": (
        other({"format": "float8_e4m3fn", "convrot": True}),
        r"q_proj: found comfy_quant .*convrot.*; expected .* and no more; give a model",
    ),
    "no JSON": (other(None), r"q_proj: found comfy_quant null; expected"),
    "a marker alone": (
        {f"{Q_PROJ}.weight": torch.ones(64, 64).to(E4M3), f"{Q_PROJ}.comfy_quant": text(MARKER)},
        r"q_proj: found comfy_quant, weight and no weight_scale or .*; expected all tensors of",
    ),
    "a scale of 16 numbers": (
        {
            f"{Q_PROJ}.weight": torch.ones(64, 64).to(E4M3),
            f"{Q_PROJ}.weight_scale": torch.ones(16),
        },
        r"q_proj: found scales of shape \(16,\), float32; expected one for the weight of shape "
        r"\(64, 64\), one for each row, or \(1, 1\) for blocks of 128x128; fetch the model again",
    ),
    "an exponent for a scale": (
        {
            f"{Q_PROJ}.weight": torch.ones(64, 64).to(E4M3),
            f"{Q_PROJ}.weight_scale": torch.ones(64, 2, dtype=torch.uint8),
        },
        r"q_proj: found scales of shape \(64, 2\), uint8; expected floats",
    ),
    "whole numbers": (
        {
            f"{Q_PROJ}.weight": torch.ones(64, 64, dtype=torch.int8),
            f"{Q_PROJ}.weight_scale": torch.ones(1),
        },
        r"q_proj: found int8 numbers beside weight_scale; expected weight of float8_e4m3fn or",
    ),
    "whole numbers alone": (
        {f"{Q_PROJ}.weight": torch.ones(64, 64, dtype=torch.int8)},
        r"q_proj: found int8 numbers and nothing that says what they stand for; expected scales",
    ),
    "a scale alone": (
        {f"{Q_PROJ}.weight_scale": torch.ones(1), f"{Q_PROJ}.weight": None},
        r"q_proj: found no numbers beside weight_scale; expected weight of float8_e4m3fn",
    ),
    "a scale that is missing": (
        {
            f"{Q_PROJ}.weight": torch.ones(64, 64).to(E4M3),
            f"{Q_PROJ}.weight_scale": torch.ones(1),
            "model.layers.0.self_attn.o_proj.weight": torch.ones(64, 64).to(E4M3),
        },
        r"o_proj: found 8-bit floats without a scale \(1 such weights\); expected one beside each, "
        r"since the model has model.layers.0.self_attn.q_proj",
    ),
    "all scales missing": (
        {f"{Q_PROJ}.weight": torch.ones(64, 64).to(E4M3), "scaled_fp8": torch.ones(2).to(E4M3)},
        r"q_proj: found 8-bit floats without a scale .*, since the model has scaled_fp8",
    ),
    "compressed-tensors": (
        {f"{Q_PROJ}.weight_packed": torch.ones(64, 8, dtype=torch.int32), f"{Q_PROJ}.weight": None},
        r"q_proj: found weight_packed, a packing of compressed-tensors' .*; expected one of .*fp8",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_whole_is_refused(tmp_path: Path, what: str):
    changed, message = BAD[what]
    tensors = {k: t for k, t in (dict(llama()) | changed).items() if t is not None}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(BaseModelError, match=message) as caught:
        load_base_model(tmp_path / "a.safetensors")
    assert caught.value.code in {Refusal.UNREADABLE_BASE, Refusal.UNSUPPORTED_DTYPE}


def test_a_marked_file_is_read(tmp_path: Path):
    def pack(name: str, weight: torch.Tensor) -> Tensors:
        numbers, scale, _ = scaled(weight, "tensor")
        return {f"{name}.weight": numbers, f"{name}.scale_weight": scale, "scaled_fp8": mark}

    mark = torch.empty(0).to(E4M3)
    model = load_base_model(save_packed(tmp_path / "a.safetensors", pack))
    assert len(model.packings) == 1


def test_a_cast_without_scales(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The numbers are torch's; large ones lose nothing, and those of 5 bits less."""

    def pack(name: str, weight: torch.Tensor) -> Tensors:
        large = {f"{name}.weight": (100 * weight).to(E4M3)}
        return large if "mlp" in name else {f"{name}.weight": weight.to(E5M2)}

    model = load_base_model(save_packed(tmp_path / "a.safetensors", pack))
    weight = llama()[f"{DOWN.removeprefix('lm.')}.weight"]
    assert_array_equal(model.matrix(DOWN), (100 * weight).to(E4M3).float().numpy())
    assert model.packings == {"fp8 without scales": 14}
    with caplog.at_level(logging.WARNING):
        assert not any(model.has_lost(path) for path in (DOWN, Q, "lm.lm_head"))
    assert caplog.messages == []


def test_what_is_lost_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def pack(name: str, weight: torch.Tensor) -> Tensors:
        return {f"{name}.weight": (0.02 * weight).to(E4M3)}

    model = load_base_model(save_packed(tmp_path / "a.safetensors", pack))
    with caplog.at_level(logging.WARNING):
        assert model.has_lost(Q)
        assert model.has_lost(DOWN)
    low = (0.02 * llama()[f"{Q.removeprefix('lm.')}.weight"]).to(E4M3).float().abs()
    percent = 100 * float((low < 2.0**-6).float().mean())
    assert [m.split(": ", 1)[1] for m in caplog.messages] == [
        f"{Q}: {percent:.0f} % of its 8-bit floats are zero or subnormal: it was cast without a "
        f"scale; a model of 16 bits, or one with scales, tells more"
    ]


def test_fingerprints_are_of_all_parts(tmp_path: Path):
    """They depend on numbers and scales, on nothing beside them, and are never those of floats."""

    def made(name: str, **changed: torch.Tensor) -> str:
        numbers, scale, _ = scaled(llama()[f"{Q_PROJ}.weight"], "rows")
        own = {"weight": numbers, "weight_scale": scale} | changed
        tensors = dict(llama()) | {f"{Q_PROJ}.{end}": tensor for end, tensor in own.items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        return load_base_model(tmp_path / f"{name}.safetensors").fingerprint(Q)

    numbers, scale, floats = scaled(llama()[f"{Q_PROJ}.weight"], "rows")
    again, beside = made("a"), made("b", input_scale=torch.ones(1))
    assert again == beside
    turned = scale.clone()
    turned[3] *= -1
    one = numbers.clone()
    one[5, 7] = 1.0
    plain = dict(llama()) | {f"{Q_PROJ}.weight": floats}
    save_file(plain, tmp_path / "plain.safetensors")
    unpacked = load_base_model(tmp_path / "plain.safetensors")
    others = {
        made("c", weight_scale=turned),
        made("d", weight=one),
        made("e", weight_scale=scale.reshape(-1)),
        unpacked.fingerprint(Q),
    }
    assert len(others | {again}) == 5
    assert_array_equal(unpacked.weight(Q), load_base_model(tmp_path / "a.safetensors").weight(Q))
