"""The command line: exit codes, one-line errors, nothing half-written, JSON for machines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toy_pair import ToyFiles, make_files

from prolora_jax.cli.main import run
from prolora_jax.plans.plan import MigrationPlan


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("cli"))


@pytest.fixture(autouse=True)
def store(files: ToyFiles, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROLORA_STORE", str(files.adapter.parent / "store"))
    monkeypatch.setenv("PROLORA_TRACEBACK", "1")


def migrate(files: ToyFiles, adapter: Path, out: Path, *options: str) -> int:
    bases = ["--source", str(files.source), "--target", str(files.target)]
    return run(["migrate", str(adapter), *bases, "--out", str(out), "-q", *options])


def broken(files: ToyFiles, path: Path, what: str) -> Path:
    """A copy of the adapter with one thing wrong."""
    data = files.adapter.read_bytes()
    tensors = load_file(files.adapter)
    up = next(key for key in tensors if key.endswith("lora_up.weight"))
    if what == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif what == "html":
        path.write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    elif what == "lfs":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif what == "zip":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
    elif what == "pickle":
        path.write_bytes(b"\x80\x02}q\x00." + bytes(100))
    elif what == "nan":
        tensors[up] = np.full_like(tensors[up], np.nan)
    elif what == "half a pair":
        del tensors[up]
    elif what == "empty":
        path.write_bytes(b"")
    if what in ("nan", "half a pair"):
        save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("truncated", "bytes of"),
        ("html", "web page"),
        ("lfs", "git-lfs"),
        ("zip", "zip archive"),
        ("pickle", "pickle"),
        ("nan", "NaN"),
        ("half a pair", "lora_up|half|up"),
        ("empty", "empty"),
    ],
)
def test_bad_file_is_refused_in_one_line(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, words: str
):
    bad = broken(files, tmp_path / "bad.safetensors", what)
    assert migrate(files, bad, tmp_path / "out.safetensors") == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert str(bad) in message
    assert any(word in message for word in words.split("|"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.safetensors"]


def test_missing_files_are_wrong_commands(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert migrate(files, tmp_path / "no.safetensors", tmp_path / "out.safetensors") == 2
    assert "no.safetensors: no such file" in capsys.readouterr().err
    gone = ToyFiles(tmp_path / "gone", files.target, files.adapter)
    assert migrate(gone, files.adapter, tmp_path / "out.safetensors") == 2
    assert "gone: no such file" in capsys.readouterr().err


def test_wrong_base_names_modules_and_remedy(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    swapped = ToyFiles(files.target, files.source, files.adapter)
    assert migrate(swapped, files.adapter, tmp_path / "out.safetensors") == 1
    message = capsys.readouterr().err
    assert "152/320 modules are not in base model ssd-1b-like" in message
    assert "lora_unet_input_blocks_7_1" in message
    assert not list(tmp_path.iterdir())


def test_adapter_of_another_architecture(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other.safetensors"
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{key}.lora_down.weight": np.ones((2, 8)), f"{key}.lora_up.weight": np.ones((8, 2))}
    save_file({k: v.astype(np.float32) for k, v in tensors.items()}, other)
    assert migrate(files, other, tmp_path / "out.safetensors") == 1
    assert "1/1 modules are not in base model sdxl-like" in capsys.readouterr().err


def test_nothing_moves_is_refused_with_the_reasons(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = migrate(files, files.adapter, tmp_path / "out.safetensors", "--min-similarity", "1")
    assert code == 1
    message = capsys.readouterr().err
    assert "no module can move" in message
    assert "below-threshold: 168" in message
    assert not list(tmp_path.iterdir())


def test_existing_output_needs_overwrite(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    assert migrate(files, files.adapter, out) == 2
    assert "output exists" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert migrate(files, files.adapter, out, "--overwrite") == 0
    assert load_file(out)


@pytest.mark.parametrize(
    "options",
    [["--method", "prolra"], ["--basis-rank", "x"], ["--no-such-option"], ["--rank", "0"]],
)
def test_bad_options(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
):
    assert migrate(files, files.adapter, tmp_path / "out.safetensors", *options) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_help_and_unknown_command(capsys: pytest.CaptureFixture[str]):
    assert run(["--help"]) == 0
    assert "Exit codes" in capsys.readouterr().out
    assert run(["migrate", "--help"]) == 0
    assert "--min-similarity" in capsys.readouterr().out
    assert run(["migrat"]) == 2


def test_dry_run_writes_nothing_and_its_json_is_the_plan(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert migrate(files, files.adapter, tmp_path / "out", "--dry-run", "--json") == 0
    plan = MigrationPlan.from_json(capsys.readouterr().out)
    assert len(plan.steps) + len(plan.skipped) == 320
    assert migrate(files, files.adapter, tmp_path / "out", "--dry-run") == 0
    assert "Would do: " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_json_is_the_report_file(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.safetensors"
    assert migrate(files, files.adapter, out, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(Path(f"{out}.report.json").read_text())
    assert sum(printed["counts"].values()) == 320
    assert {"project", "below-threshold", "removed-in-target"} <= set(printed["counts"])


def test_config_file_and_command_line(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = tmp_path / "job.yaml"
    config.write_text(f"source: {files.source}\ntarget: {files.target}\nmethod: subspace\n")
    command = ["migrate", str(files.adapter), "--config", str(config), "--dry-run", "--json", "-q"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["options"]["method"] == "subspace"
    assert run([*command, "--method", "null-space"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["method"] == "null-space"
    config.write_text("no_such_option: 1\n")
    assert run(command) == 2
    assert run(["migrate", "x", "--config", str(tmp_path / "none.yaml")]) == 2


def test_preset_paper(files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert (
        migrate(files, files.adapter, tmp_path / "o", "--dry-run", "--json", "--preset", "paper")
        == 0
    )
    options = json.loads(capsys.readouterr().out)["options"]
    assert (options["method"], options["gate"], options["gate_sides"]) == ("prolora", "phi", "left")


def test_inspect(files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bad = broken(files, tmp_path / "bad.safetensors", "html")
    assert run(["inspect", str(files.adapter), str(bad), "--json"]) == 1
    good, refused = json.loads(capsys.readouterr().out)["files"]
    assert (good["format"], good["modules"], good["ranks"]) == ("kohya-ldm", 320, {"4": 320})
    assert (refused["verdict"], refused["reason"]) == ("refused", "not-safetensors")
    assert run(["inspect", str(files.adapter), "--source", str(files.source)]) == 0
    assert "320 modules" in capsys.readouterr().out


def test_header_strings_cannot_steer_the_terminal(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    evil = tmp_path / "evil.safetensors"
    save_file(load_file(files.adapter), evil, metadata={"ss_sd_model_name": "\x1b[2Jgone\nfake"})
    assert run(["inspect", str(evil)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "gone\N{REPLACEMENT CHARACTER}fake" in printed


def test_similarity(files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bases = ["--source", str(files.source), "--target", str(files.target), "-q"]
    picture = tmp_path / "map.png"
    assert run(["similarity", *bases, "--plot", str(picture)]) == 0
    assert "compared modules" in capsys.readouterr().out.strip().splitlines()[-1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run(["similarity", *bases, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["modules"]) == 168
    assert document["relation"]["total"] == 168


def test_unrelated_bases_are_called_unrelated(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stranger = make_files(tmp_path, seed=1).source
    bases = ["--source", str(files.source), "--target", str(stranger), "-q"]
    assert run(["similarity", *bases]) == 0
    assert "do not expect transfer" in capsys.readouterr().out.strip().splitlines()[-1]


def test_identical_bases_are_copied(files: ToyFiles, tmp_path: Path):
    same = ToyFiles(files.source, files.source, files.adapter)
    assert migrate(same, files.adapter, tmp_path / "out.safetensors") == 0
    before, after = load_file(files.adapter), load_file(tmp_path / "out.safetensors")
    report = json.loads((tmp_path / "out.safetensors.report.json").read_text())
    assert report["counts"] == {"copy": 320}
    for key in before:
        if key.endswith("lora_up.weight"):
            down = key.replace("lora_up", "lora_down")
            # The input's scale (alpha 2, rank 4) is folded in; the output says alpha = rank.
            expected = 0.5 * before[key].astype(np.float64) @ before[down].astype(np.float64)
            found = after[key].astype(np.float64) @ after[down].astype(np.float64)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_verify_accepts_and_rejects(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.safetensors"
    assert migrate(files, files.adapter, out) == 0
    assert run(["verify", str(out)]) == 0
    tensors = load_file(out)
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    tensors[key] = tensors[key] * np.float16(1.1)
    save_file(tensors, out)
    capsys.readouterr()
    assert run(["verify", str(out), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    Path(f"{out}.report.json").write_text("{}")
    assert run(["verify", str(out)]) == 2
    assert "found no migration report" in capsys.readouterr().err
    Path(f"{out}.report.json").unlink()
    assert run(["verify", str(out)]) == 2


def test_interrupt_is_130(files: ToyFiles, tmp_path: Path):
    code = (
        "import prolora_jax.migration.single as m\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "m.plan_fitted = stop\n"
        "from prolora_jax.cli.main import main\n"
        f"main(['migrate', {str(files.adapter)!r}, '--source', {str(files.source)!r}, "
        f"'--target', {str(files.target)!r}, '--out', {str(tmp_path / 'o')!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
