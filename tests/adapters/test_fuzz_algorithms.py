"""Broken files of LoHa, LoKr, DoRA, OFT and their like: factors, or a refusal with a code."""

import runpy
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.factoring import factored
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAME = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
SPEC = BaseModelSpec("none", {})


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return runpy.run_path(str(SCRIPTS / "fuzz_algorithms.py"))


def test_mutated_files_are_worked_out_or_refused(fuzz, tmp_path: Path):
    result = fuzz["run"](25, seed=3, folder=tmp_path)
    assert result["failures"] == [], result["failures"]
    assert result["failed"] == 0
    for family, counts in result["counts"].items():
        assert sum(counts["fit"].values()) == 25, family
        assert counts["fit"]["parsed"] > 0, family


def test_every_file_to_mutate_is_valid(fuzz, tmp_path: Path):
    model, file = fuzz["made_base"](tmp_path), tmp_path / "case.safetensors"
    for family, (tensors, metadata) in fuzz["FAMILIES"].items():
        case = fuzz["Case"](dict(tensors), dict(metadata))
        for name, job in fuzz["jobs"](case, file, 0, model).items():
            assert fuzz["tried"](job, file)[0] == "parsed", (family, name)


def parsed(parts: dict[str, np.ndarray]):
    tensors = {f"{NAME}.{end}": array for end, array in parts.items()}
    return parse(tensors, {}, "a.safetensors", structured=True)


@pytest.mark.parametrize("size", [1e30, 1e120, 1e300])
@pytest.mark.parametrize("algorithm", ["loha", "lokr", "full"])
def test_products_beyond_float32_and_float64(algorithm: str, size: float):
    matrix = np.full((4, 4), size)
    ends = {
        "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        "lokr": ("lokr_w1", "lokr_w2"),
        "full": ("diff",),
    }
    adapter = parsed(dict.fromkeys(ends[algorithm], matrix))
    if size == 1e30 and algorithm != "loha":
        made = factored(adapter, SPEC).modules[0]
        assert np.isfinite(made.up).all()
        assert np.isfinite(made.down).all()
        return
    with pytest.raises(AdapterRefused, match="found an update of .* that float32 does not") as got:
        factored(adapter, SPEC)
    assert got.value.code is Refusal.NON_FINITE


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"lokr_w1": (4, 4), "lokr_w1_a": (4, 2), "lokr_w2": (4, 4)}, "lokr_w1 .*of LoKr"),
        ({"lokr_w1": (4, 4), "lokr_w2": (4, 4), "lokr_t2": (2, 2, 3, 3)}, "lokr_t2 .*of LoKr"),
        (
            {"hada_t1": (2, 2, 3, 3), "hada_w1_a": (2, 4), "hada_w1_b": (2, 4)}
            | {"hada_w2_a": (2, 4), "hada_w2_b": (2, 4)},
            "hada_t1 .*as hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b of LoHa",
        ),
        ({"dora_scale": (4, 1), "lora_down.weight": (2, 4), "hada_w1_a": (4, 2)}, "down .*"),
        ({"lokr_w1": (4,), "lokr_w2": (4, 4)}, r"lokr_w1 \(4,\)"),
        ({"diff": (4, 4), "dora_scale": (4, 1)}, "diff .*, magnitude"),
    ],
)
def test_sets_of_tensors_that_nobody_writes(parts: dict[str, tuple[int, ...]], match: str):
    with pytest.raises(AdapterRefused, match=f"found .*{match}.*; fetch the file again") as got:
        parsed({end: np.ones(shape, np.float32) for end, shape in parts.items()})
    assert got.value.code is Refusal.INCOMPLETE_PAIR


def test_parts_of_two_half_precisions_are_float32_together():
    half, brain = np.ones((2, 2), np.float16), np.ones((2, 2), ml_dtypes.bfloat16)
    found = StructuredModule("unet.x", "lokr", {"lokr_w1": half, "lokr_w2": brain})
    assert found.dtype == np.float32
    assert StructuredModule("unet.x", "lokr", {"lokr_w1": brain}).dtype == brain.dtype
