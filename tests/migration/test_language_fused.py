"""Layers that a trainer has fused and the base model's files have not, and the other way round."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from language_models import FAMILIES, merged
from safetensors.numpy import load_file, save_file

from prolora_jax.errors import AdapterRefused
from prolora_jax.io.adapters.whole_files import convert_file

WEIGHTS = "adapter_model.safetensors"
RNG = np.random.default_rng(7)
H, R, SCALE = 32, 2, 1.5
ROWS = {
    "self_attn.qkv_proj": {"q_proj": 32, "k_proj": 16, "v_proj": 16},
    "mlp.gate_up_proj": {"gate_proj": 48, "up_proj": 48},
}
"""Rows of each part of Phi's fused layers, in their order, at the sizes of the tests."""


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return saved(tmp_path_factory.mktemp("phi"), "phi3")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return saved(tmp_path_factory.mktemp("llama"), "qwen2")  # its heads are as wide as Phi's


def saved(folder: Path, family: str) -> tuple[Path, Any]:
    net = FAMILIES[family].build(1, seed=0)
    net.save_pretrained(folder)
    return folder, net


def numbers(*shape: int) -> np.ndarray:
    return (0.1 * RNG.standard_normal(shape)).astype(np.float32)


def write(folder: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]], **fields: Any) -> Path:
    folder.mkdir()
    root = "base_model.model.model.layers.0"
    tensors = {f"{root}.{name}.lora_A.weight": a for name, (a, _) in pairs.items()}
    tensors |= {f"{root}.{name}.lora_B.weight": b for name, (_, b) in pairs.items()}
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "r": R, "lora_alpha": 3, "target_modules": [*pairs]} | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def added(net: Any, adapter: Path) -> dict[str, np.ndarray]:
    before, after = net.state_dict(), merged(net, adapter).state_dict()
    found = {key: (after[key] - before[key]).numpy() for key in before}
    root = "model.layers.0."
    return {
        key.removeprefix(root).removesuffix(".weight"): d for key, d in found.items() if d.any()
    }


@pytest.mark.parametrize("one", [True, False], ids=["one-A", "an-A-each"])
def test_parts_are_put_together_for_a_base_model_that_has_them_fused(
    phi: tuple[Path, Any], tmp_path: Path, one: bool
) -> None:
    base, net = phi
    pairs, wanted = {}, {}
    for fused, rows in ROWS.items():
        home, shared, blocks = fused.partition(".")[0], numbers(R, H), []
        for part, n in rows.items():
            pair = shared if one else numbers(R, H), numbers(n, R)
            if part == "k_proj":  # not adapted
                blocks.append(np.zeros((n, H)))
                continue
            pairs[f"{home}.{part}"] = pair
            blocks.append(SCALE * pair[1] @ pair[0])
        wanted[fused] = np.concatenate(blocks)
    convert_file(write(tmp_path / "given", pairs), "peft", tmp_path / "out", base)
    found = added(net, tmp_path / "out")
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        np.testing.assert_allclose(found[name], update, atol=2e-7)
    ranks = {a.shape[0] for key, a in load_file(tmp_path / "out" / WEIGHTS).items() if "_A" in key}
    assert ranks == ({R} if one else {2 * R})


def test_parts_of_several_scales_are_put_together_all_the_same(
    phi: tuple[Path, Any], tmp_path: Path
) -> None:
    base, net = phi
    gate, up = ((numbers(R, H), numbers(48, R)) for _ in range(2))
    pairs = {"mlp.gate_proj": gate, "mlp.up_proj": up}
    given = write(tmp_path / "given", pairs, alpha_pattern={"up_proj": 7})
    convert_file(given, "peft", tmp_path / "out", base)
    wanted = np.concatenate([1.5 * gate[1] @ gate[0], 3.5 * up[1] @ up[0]])
    found = added(net, tmp_path / "out")["mlp.gate_up_proj"]
    np.testing.assert_allclose(found, wanted, atol=2e-7)


def test_a_fused_layer_is_cut_for_a_base_model_that_has_its_parts(
    llama: tuple[Path, Any], tmp_path: Path
) -> None:
    base, net = llama
    pairs, wanted = {}, {}
    for fused, rows in ROWS.items():
        a, b = pairs[fused] = numbers(R, H), numbers(sum(rows.values()), R)
        blocks = np.split(SCALE * b @ a, np.cumsum([*rows.values()])[:-1])
        home = fused.partition(".")[0]
        wanted |= {f"{home}.{part}": block for part, block in zip(rows, blocks, strict=True)}
    convert_file(write(tmp_path / "given", pairs), "peft", tmp_path / "out", base)
    found = added(net, tmp_path / "out")
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        np.testing.assert_allclose(found[name], update, atol=2e-7)
    # Every part has the same A, so that they fuse back at their rank.
    arrays = load_file(tmp_path / "out" / WEIGHTS)
    for fused, rows in ROWS.items():
        home = fused.partition(".")[0]
        for part in rows:
            name = f"base_model.model.model.layers.0.{home}.{part}.lora_A.weight"
            np.testing.assert_array_equal(arrays[name], pairs[fused][0])


def test_other_heads_than_the_base_model_s_are_refused(
    phi: tuple[Path, Any], tmp_path: Path
) -> None:
    pairs = {"self_attn.q_proj": (numbers(R, H), numbers(24, R))}
    with pytest.raises(AdapterRefused, match="not in base model"):
        convert_file(write(tmp_path / "given", pairs), "peft", tmp_path / "out", phi[0])
