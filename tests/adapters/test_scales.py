"""Scales: said in header strings alone, and multiplied into factors of 16 bits."""

import ml_dtypes
import numpy as np
import pytest

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.adapters.formats.flax_tree import to_flax
from prolora_jax.adapters.formats.folding import fold_scales
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.unet.table import UNetTensors
from prolora_jax.errors import AdapterRefused, Refusal

TINY = UNetTensors((8, 16), (0, 1), (1, 0), mid_depth=1, cross_attention_dim=6, add_embedding_dim=8)
SPEC = spec_from_config(TINY, name="tiny")
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_"


def file_of(*ranks: int, kohya: bool = False, alpha: float | None = None) -> dict[str, np.ndarray]:
    ends = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    tensors = {}
    for rank, layer in zip(ranks, "qkv", strict=False):
        name = FLAT + layer if kohya else TO_Q[:-1] + layer
        tensors[f"{name}.{ends[0]}.weight"] = np.ones((rank, 16), np.float32)
        tensors[f"{name}.{ends[1]}.weight"] = np.ones((16, rank), np.float32)
        if alpha is not None:
            tensors[f"{name}.alpha"] = np.asarray(alpha, np.float32)
    return tensors


def read(tensors: dict[str, np.ndarray], **header: str) -> tuple[set[float], tuple[str, ...]]:
    adapter = parse(tensors, header, "a.safetensors")
    return {module.scale for module in adapter.modules}, adapter.flags


# --- the header ---

SAID = [
    ({"lora_alpha": "8"}, 2.0),
    ({"lora_alpha": "8", "r": "4"}, 2.0),
    ({"alpha": "2.0", "rank": "4"}, 0.5),
    ({"network_alpha": "1", "network_dim": "4"}, 0.25),
    ({"network_alpha": "1", "lora_alpha": "1.0", "lora_rank": "4"}, 0.25),
    ({"lora_alpha": "8", "rank": "4", "use_rslora": "True"}, 4.0),
    ({"lora_alpha": "-4", "rank": "4"}, -1.0),
]


@pytest.mark.parametrize(("header", "scale"), SAID, ids=str)
@pytest.mark.parametrize("kohya", [False, True])
def test_a_scale_in_the_header_is_used_and_said(header, scale, kohya):
    scales, flags = read(file_of(4, 4, kohya=kohya), **header)
    assert scales == {scale}
    (flag,) = flags
    assert flag.startswith("scale-from-header: ")
    assert all(key in flag for key in header if key != "use_rslora")


def test_kohyas_own_strings_count_where_the_keys_are_kohyas():
    header = {"ss_network_alpha": "1.0", "ss_network_dim": "4"}
    said = "ss_network_alpha 1, ss_network_dim 4"
    assert read(file_of(4, kohya=True), **header) == ({0.25}, (f"scale-from-header: {said}",))
    # Conversions leave the strings and fold the scale: in other keys they may be a rest.
    unsure = (f"scale-unsure: {said}, scale 1 is used",)
    assert read(file_of(4), **header) == ({1.0}, unsure)
    assert read(file_of(8, kohya=True), **header) == ({1.0}, unsure)  # stale after a resize


SILENT = [
    {},
    {"alpha": "2.0"},  # of what?
    {"lora_alpha": "None"},
    {"lora_alpha": "nan", "rank": "4"},
    {"lora_alpha": "4", "rank": "4"},
    {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"},
    {"ss_network_alpha": "4", "ss_network_dim": "4"},
    {"rank": "4"},
]


@pytest.mark.parametrize("header", SILENT, ids=str)
def test_a_header_that_says_no_scale(header):
    assert read(file_of(4, 4, kohya=True), **header) == ({1.0}, ())


CONTRADICTIONS = [
    ((4, 4), {"lora_alpha": "8", "rank": "8"}),
    ((4, 4), {"lora_alpha": "8", "network_alpha": "4"}),
    ((4, 4), {"lora_alpha": "8", "rank": "4", "dim": "8"}),
    ((4, 2), {"lora_alpha": "8"}),
    ((4, 2), {"alpha": "8", "rank": "4"}),
]


@pytest.mark.parametrize(("ranks", "header"), CONTRADICTIONS, ids=str)
def test_a_header_that_contradicts_the_factors_is_refused(ranks, header):
    message = r"^a.safetensors: the header says .*alpha 8.*, the factors have rank .* and no alpha;"
    with pytest.raises(AdapterRefused, match=message) as caught:
        read(file_of(*ranks), **header)
    assert caught.value.code is Refusal.UNKNOWN_KEYS


def test_alphas_beside_the_factors_win_and_a_conflict_is_said():
    for header in ({"lora_alpha": "8"}, {"ss_network_alpha": "8", "ss_network_dim": "4"}):
        scales, (flag,) = read(file_of(4, kohya=True, alpha=2.0), **header)
        assert scales == {0.5}
        assert flag.startswith("scale-conflict: ")
        assert flag.endswith(", the file's alphas are used")
        assert read(file_of(4, kohya=True, alpha=8.0), **header) == ({2.0}, ())


def test_an_alpha_of_zero_in_the_header_is_as_unclear_as_elsewhere():
    header = {"lora_alpha": "0"}
    with pytest.raises(AdapterRefused, match="found alpha 0") as caught:
        read(file_of(4), **header)
    assert caught.value.code is Refusal.ALPHA_ZERO
    (module,) = parse(file_of(4), header, "a", "rank").modules
    assert module.scale == 1.0
    (module,) = parse(file_of(4), header, "a", "zero").modules
    assert not module.up.any()


@pytest.mark.parametrize("format", ["kohya-ldm", "diffusers", "comfyui", "peft"])
@pytest.mark.parametrize("header", [SAID[2][0], {"ss_network_alpha": "2", "ss_network_dim": "4"}])
def test_what_is_written_says_the_scale_once(format, header):
    adapter = parse(file_of(4, 4, kohya=True), header, "a")
    tensors, written = dump(adapter, format, SPEC)
    again = parse(tensors, written, "b")
    shapes = [(m.up.astype(np.float64) @ m.down) * m.scale for m in again.modules]
    assert all(np.array_equal(update, np.full((16, 16), 2.0)) for update in shapes)
    assert again.flags == ()


# --- folding ---


def module_of(dtype: str, up: float, down: float, alpha: float, rank: int = 4) -> LoraModule:
    rng = np.random.default_rng(7)
    factors = rng.standard_normal((rank, 16)) * down, rng.standard_normal((16, rank)) * up
    return LoraModule(TO_Q, *(a.astype(dtype) for a in factors), alpha=alpha)


def loss(module: LoraModule, down: np.ndarray, up: np.ndarray) -> float:
    """Relative error of `up @ down` as an update, in float64, by plain NumPy."""
    true = module.up.astype(np.float64) @ module.down.astype(np.float64) * module.scale
    return float(
        np.linalg.norm(up.astype(np.float64) @ down.astype(np.float64) - true)
        / np.linalg.norm(true)
    )


SIZES = [(1.0, 1.0), (1e-4, 1.0), (1e-4, 1e-4), (1e-2, 1e2), (1e4, 1e-4), (1e-6, 1e3)]
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}


@pytest.mark.parametrize("alpha", [4.0, 1.0, 3.0, -0.1, 0.01, 4e6])
@pytest.mark.parametrize("dtype", list(ROUNDOFF))
@pytest.mark.parametrize(("up", "down"), SIZES)
def test_a_folded_scale_costs_no_more_than_the_dtypes_own_rounding(dtype, up, down, alpha):
    module = module_of(dtype, up, down, alpha)
    adapter = Adapter((module,), "diffusers", origin="a")
    tensors, _ = dump(adapter, "diffusers", SPEC)
    a, b = tensors[f"{TO_Q}.lora_A.weight"], tensors[f"{TO_Q}.lora_B.weight"]
    assert loss(module, a, b) <= ROUNDOFF[dtype]
    tree = to_flax(adapter, SPEC)
    leaf = tree["unet"]["down_blocks_1"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_q"]
    kernels = leaf["lora-default"]
    assert loss(module, kernels["down"]["kernel"].T, kernels["up"]["kernel"].T) <= ROUNDOFF[dtype]
    if alpha == 4.0:  # a scale of 1 moves no bit
        assert np.array_equal(a, module.down)
        assert np.array_equal(b, module.up)


def test_half_precision_is_kept_where_it_holds_the_update(caplog):
    for alpha in (1.0, 0.01, 4e6):
        (kept,) = fold_scales(Adapter((module_of("float16", 1, 1, alpha),), "diffusers")).modules
        assert kept.up.dtype == kept.down.dtype == np.float16
    assert not caplog.records
    (wide,) = fold_scales(Adapter((module_of("float16", 1e-6, 1e-6, 1),), "x", origin="a")).modules
    assert wide.up.dtype == wide.down.dtype == np.float32
    assert f"a: 1 modules, first {TO_Q}, are written in float32" in caplog.text
    (brain,) = fold_scales(Adapter((module_of("bfloat16", 1e-6, 1e-6, 1),), "x")).modules
    assert brain.up.dtype == ml_dtypes.bfloat16


def test_a_sign_is_folded_without_rounding():
    module = module_of("float16", 1e-4, 1, -3.0)
    tensors, _ = dump(Adapter((module,), "x"), "maxdiffusion", SPEC)
    assert np.array_equal(tensors[f"{FLAT}q.lora_up.weight"], -module.up)
    assert tensors[f"{FLAT}q.alpha"] == 3.0
