"""What commands say of language models: packed ones in plans and reports, and of bases as such."""

import json
from pathlib import Path

import pytest
import torch
from packed_models import llama, save_packed, save_plain
from safetensors.torch import save_file

from prolora_jax.cli.main import run
from prolora_jax.verification.file import verify_file

Q = "model.layers.0.self_attn.q_proj"
CONFIG = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
PACKED = "fp8 by rows (14)"


def packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    numbers = (weight / scale).to(torch.float8_e4m3fn)
    return {f"{name}.weight": numbers, f"{name}.weight_scale": scale}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama, the same in 8 bits, and an adapter of the first, in a folder each."""
    root = tmp_path_factory.mktemp("models")
    for name in ("plain", "packed", "adapter"):
        (root / name).mkdir()
    save_plain(root / "plain" / "model.safetensors")
    save_packed(root / "packed" / "model.safetensors", packed)
    for name in ("plain", "packed"):
        (root / name / "config.json").write_text(json.dumps(CONFIG))
    generator = torch.Generator().manual_seed(0)
    shapes = {"lora_A": (2, 64), "lora_B": (64, 2)}
    factors = {
        f"base_model.model.{Q}.{part}.weight": torch.randn(shape, generator=generator)
        for part, shape in shapes.items()
    }
    save_file(factors, root / "adapter" / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(fields))
    return root


def test_plan_and_report_say_how_bases_are_packed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(folder / "adapter"), "--source", str(folder / "plain"), "-q"]
    given += ["--target", str(folder / "packed")]
    assert run(["migrate", *given, "--dry-run"]) == 0
    said = f"Packed weights of the target: {PACKED}"
    assert said in capsys.readouterr().out
    out = tmp_path / "out"
    assert run(["migrate", *given, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert "Packed weights of the source" not in printed
    file = tmp_path / "out.report.json"
    report = json.loads(file.read_text())
    assert report["source"]["packings"] == {}
    assert report["target"]["packings"] == {"fp8 by rows": 14}
    assert [m["flags"] for m in report["modules"]] == [["packed-twin"]]
    assert verify_file(out).ok
    report["target"]["packings"] = {"nf4": 14}
    file.write_text(json.dumps(report))
    (problem,) = verify_file(out).problems
    assert "report has packings {'nf4': 14} of its target" in problem


def test_inspect_says_what_a_base_model_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = folder / "packed" / "model.safetensors"
    assert run(["inspect", str(folder / "plain"), str(bare), "--json"]) == 0
    plain, packed = json.loads(capsys.readouterr().out)["files"]
    facts = {"family": "llama", "layers": 2, "width": 64, "vocabulary": 96, "modules": 15}
    assert plain["verdict"] == packed["verdict"] == "base-model"
    assert plain["base_model"] == facts | {"packings": {}}
    assert packed["base_model"] == facts | {"packings": {"fp8 by rows": 14}}
    adapter, base = str(folder / "adapter"), str(folder / "packed")
    assert run(["inspect", base, adapter, "--source", base]) == 0
    first, second = capsys.readouterr().out.split(adapter)
    assert "packed: a base model, not an adapter" in first
    for printed in (first, second):
        assert "language model: llama" in printed
        assert f"packed weights: {PACKED}" in printed


def test_a_base_model_among_adapters_is_called_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file without a prefix as well: the model's own, saved without its head."""
    inner = {key.removeprefix("model."): tensor for key, tensor in llama().items()}
    save_file({k: t for k, t in inner.items() if k != "lm_head.weight"}, tmp_path / "a.safetensors")
    given = ["--source", str(folder / "plain"), "--target", str(folder / "packed"), "-q", "--json"]
    run(["migrate", str(tmp_path), *given, "--out", str(tmp_path / "out"), "--dry-run"])
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert row["reason"] == "not-an-adapter"
    assert "a base model, not an adapter" in row["message"]
