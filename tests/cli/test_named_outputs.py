"""Pages, pictures and tables are written again unasked, so by name they can be nothing else."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from prolora_jax.cli.main import run

ADAPTERS = ["a.safetensors", "b.safetensors", "--source", "s", "--target", "t", "--out", "o"]
COMMANDS = {
    "similarity": (["similarity", "--source", "s", "--target", "t", "--plot"], ".png"),
    "status": (["status", "folder", "--report"], ".html"),
    "migrate": (["migrate", *ADAPTERS, "--report"], ".html"),
    "scan": (["migrate", *ADAPTERS, "--dry-run", "--report"], ".html"),
    "benchmark": (["benchmark", "bases", "--quick", "--out"], ".json"),
    "generate": (["generate", "--base", "s", "--prompt", "x", "--overwrite", "--out"], ".png"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.sqlite", "model.ckpt", "model"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_of_something_else_is_refused_before_any_work(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for path in ("a.safetensors", "b.safetensors"):
        (tmp_path / path).write_bytes(b"")
    arguments, ending = COMMANDS[command]
    precious = tmp_path / name
    precious.write_text("a base model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run([*arguments, str(precious)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"found a name that ends in {precious.suffix or 'no suffix'}; expected one" in said
    assert f"ends in {ending}, which no adapter and no base model has; choose another" in said
    assert precious.read_text() == "a base model"


def test_a_picture_of_two_adapters_replaces_neither(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    factor = np.ones((2, 2), np.float32)
    file = tmp_path / "a.safetensors"
    save_file({f"{name}.lora_A.weight": factor, f"{name}.lora_B.weight": factor}, file)
    before = file.read_bytes()
    assert run(["diff", str(file), str(file), "--plot", str(file)]) == 2
    assert "ends in .safetensors; expected one that ends in .png" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert run(["diff", str(file), str(file), "--plot", str(tmp_path / "a.PNG")]) == 0
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")
