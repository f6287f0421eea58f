"""`prolora verify` where something is gone or damaged; what its messages advise works."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_adapters import write
from toy_pair import ToyFiles, make_files

from prolora_jax.cli.main import run
from prolora_jax.verification import sampling

# Nothing is decomposed.
COPY = ("--method", "copy", "--match", "name")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("toys"))


@pytest.fixture(autouse=True)
def surroundings(toys: ToyFiles, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROLORA_STORE", str(toys.adapter.parent / "store"))
    monkeypatch.setenv("PROLORA_TRACEBACK", "1")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for n, name in enumerate(("a", "b")):
        write(tmp_path / "in" / f"{name}.safetensors", n, (4,), ("1.attn2.to_q",))
    return tmp_path / "in"


@pytest.fixture
def migrate(toys: ToyFiles) -> Callable[..., int]:
    def run_it(*inputs: Path, out: Path, more: tuple[str, ...] = COPY) -> int:
        bases = ["--source", str(toys.source), "--target", str(toys.target)]
        return run(["migrate", *map(str, inputs), *bases, "--out", str(out), "-q", *more])

    return run_it


def checked(place: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = run(["verify", str(place), "--json", "-q", *more])
    return code, json.loads(capsys.readouterr().out)


def test_a_file_whose_input_is_gone_is_not_called_verified(
    given: Path, tmp_path: Path, migrate, capsys: pytest.CaptureFixture[str]
):
    adapter, out = given / "a.safetensors", tmp_path / "out.safetensors"
    assert migrate(adapter, out=out, more=("--include", "*down_blocks.1*")) == 0
    code, found = checked(out, capsys)
    assert (code, found["verdict"], found["code"], found["message"]) == (
        *(0, "verified", None),
        "Verified.",
    )
    elsewhere = adapter.rename(tmp_path / "elsewhere.safetensors")
    code, found = checked(out, capsys)
    assert (code, found["ok"], found["verdict"]) == (1, False, "not-compared")
    assert (found["code"], found["absent"]) == ("missing-file", [str(adapter)])
    assert found["problems"] == []
    assert set(found["counts"]) == {"not-compared"}
    assert run(["verify", str(out), "-q"]) == 1
    last = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Not verified: nothing wrong was found") for line in last)
    assert not any(line.startswith("Verified") for line in last)
    assert checked(out, capsys, "--source-lora", str(elsewhere))[0] == 0
    code, found = checked(out, capsys, "--source-lora", str(adapter))
    assert (code, found["code"]) == (2, "missing-file")
    tensors = load_file(out)
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    save_file({**tensors, key: tensors[key] * 2}, out)
    code, found = checked(out, capsys)
    assert (code, found["verdict"], found["code"]) == (1, "failed", "not-verified")


def test_a_sum_with_one_adapter_gone_is_not_compared(
    given: Path, tmp_path: Path, migrate, capsys: pytest.CaptureFixture[str]
):
    paths, out = sorted(given.iterdir()), tmp_path / "out.safetensors"
    assert migrate(*paths, out=out, more=("--merge", *COPY)) == 0
    assert checked(out, capsys)[0] == 0
    paths[1].unlink()
    code, found = checked(out, capsys)
    assert (code, found["verdict"], found["absent"]) == (1, "not-compared", [str(paths[1])])


def test_a_catalog_whose_inputs_are_gone(
    given: Path, tmp_path: Path, migrate, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert migrate(given, out=out) == 0
    code, found = checked(out, capsys)
    assert (code, found["verdict"], found["code"]) == (0, "verified", None)
    (given / "a.safetensors").unlink()
    code, found = checked(out, capsys)
    assert (code, found["verdict"], found["code"]) == (1, "failed", "not-verified")
    assert list(found["problems"]) == ["a.safetensors"]
    assert "not compared: its input is not there: " in found["problems"]["a.safetensors"]
    code, found = checked(out / "a.safetensors", capsys)
    assert (code, found["verdict"], found["problems"]) == (1, "not-compared", [])
    report = out / "a.safetensors.report.json"
    told = json.loads(report.read_text())
    told["totals"]["energy_out"] *= 2
    report.write_text(json.dumps(told))
    code, found = checked(out / "a.safetensors", capsys)
    assert found["verdict"] == "failed"
    assert "totals.energy_out" in found["problems"][0]


def test_a_weight_that_is_not_finite_names_the_base(
    given: Path, tmp_path: Path, migrate, toys: ToyFiles, capsys: pytest.CaptureFixture[str]
):
    out, base = tmp_path / "out.safetensors", tmp_path / "base" / "unet"
    more = ("--include", "*down_blocks.1*")
    assert migrate(given / "a.safetensors", out=out, more=more) == 0
    weights = toys.target / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    path = json.loads(Path(f"{out}.report.json").read_text())["modules"][0]["path"]
    tensors[f"{path.removeprefix('unet.')}.weight"][0, 0] = np.inf
    base.mkdir(parents=True)
    save_file(tensors, base / weights.name)
    code, found = checked(out, capsys, "--target", str(base.parent))
    assert (code, found["code"]) == (2, "non-finite")
    assert found["message"].startswith(f"{base.parent}: {path}: found NaN or infinite numbers")


def test_what_was_drawn_is_said(
    given: Path, tmp_path: Path, migrate, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.setattr(sampling, "WORK", 0.0)
    monkeypatch.setattr(sampling, "LEAST", 1)
    file, folder, few = tmp_path / "out.safetensors", tmp_path / "out", ("--include", "*blocks.1*")
    assert migrate(given / "a.safetensors", out=file, more=few) == 0
    code, found = checked(file, capsys)
    assert (code, found["verdict"]) == (0, "verified")
    sample = found["sample"]
    assert (sample["recomputed"], found["counts"]["verified"]) == (1, 1)
    assert found["counts"]["not-recomputed"] == sample["of"] - 1
    words = f"Verified: 1 of {sample['of']} projected modules recomputed, drawn at random"
    assert found["message"].startswith(f"{words} (--seed {sample['seed']} draws them again, --all")
    again = checked(file, capsys, "--seed", sample["seed"])[1]
    assert again["modules"] == found["modules"]
    whole = checked(file, capsys, "--all", "--workers", "1")[1]
    assert (whole["message"], set(whole["counts"])) == ("Verified.", {"verified"})
    assert migrate(given, out=folder, more=few) == 0
    code, found = checked(folder, capsys, "--sample", "1")
    assert (code, found["recomputed"], found["modules"]["recomputed"]) == (0, 1, 1)
    assert found["modules"]["of"] > 1
    assert run(["verify", str(folder), "-q", "--sample", "1"]) == 0
    assert "1 of " in (said := capsys.readouterr().out)
    assert "projected modules recomputed, drawn at random" in " ".join(said.split())
    again = checked(folder, capsys, "--sample", "1", "--seed", found["modules"]["seed"])[1]
    assert again["modules"] == found["modules"]
    every = checked(folder, capsys, "--all", "--workers", "1")[1]
    assert (every["recomputed"], every["modules"]["seed"]) == (2, None)
    assert every["modules"]["recomputed"] == every["modules"]["of"]


def damages() -> dict[str, Callable[[Path], object]]:
    """Ways in which a report can be damaged."""

    def changed(path: Path, text: Callable[[str], str]) -> None:
        path.write_text(text(path.read_text()))

    def null(path: Path, name: str) -> None:
        told = json.loads(path.read_text())
        told.get("modules", [told.get("totals", told)])[0][name] = None
        path.write_text(json.dumps(told))

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    return {
        "gone": Path.unlink,
        "null": lambda path: null(path, "rank_in"),
        "no JSON": lambda path: changed(path, lambda text: text[:-9]),
        "no report": lambda path: path.write_text("{}"),
        "no text": lambda path: path.write_bytes(b"\xff\xfe"),
        "a folder": folder,
    }


@pytest.mark.parametrize("how", damages())
@pytest.mark.parametrize("many", [False, True])
def test_what_is_advised_for_a_damaged_report_works(
    how: str, many: bool, given: Path, tmp_path: Path, migrate, capsys
):
    inputs, out = (given, tmp_path / "out") if many else (given / "a.safetensors", tmp_path / "o")
    file = out / "a.safetensors" if many else out.with_suffix(".safetensors")
    out = out if many else file
    assert migrate(inputs, out=out) == 0
    report = Path(f"{file}.report.json")
    damages()[how](report)
    code, found = checked(file, capsys)
    assert (code, found["code"]) == (2, "bad-report")
    message = found["message"]
    assert message.startswith(f"{report}: ")
    assert message.endswith("igrate again with --overwrite.")
    if how == "null":
        place = "$.totals.rank_in" if many else "$.modules[0].rank_in"
        assert f"got `null` - at `{place}`" in message
    if "remove what is there" in message.lower():
        os.rmdir(report)
    assert migrate(inputs, out=out, more=("--overwrite", *COPY)) == 0
    assert checked(file, capsys)[0] == 0


@pytest.mark.parametrize("keep_times", [False, True])
def test_what_is_advised_for_a_damaged_output_works(
    keep_times: bool, given: Path, tmp_path: Path, migrate, capsys
):
    out = tmp_path / "out"
    assert migrate(given, out=out) == 0
    file = out / "a.safetensors"
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 64
    file.write_bytes(data)
    if keep_times:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, found = checked(out, capsys)
    assert code == 1
    (problem,) = found["problems"].values()
    assert problem.endswith("other content; remove it and migrate again")
    file.unlink()
    (problem,) = checked(out, capsys)[1]["problems"].values()
    assert problem.endswith("No such file or directory; migrate again")
    assert migrate(given, out=out) == 0
    assert checked(out, capsys)[0] == 0


@pytest.mark.parametrize("how", ["gone", "no JSON", "no report", "another"])
def test_what_is_advised_for_a_damaged_report_of_the_pair_works(
    how: str, given: Path, tmp_path: Path, migrate, capsys
):
    out = tmp_path / "out"
    assert migrate(given, out=out) == 0
    report = out / "pair.report.json"
    if how == "another":
        told = json.loads(report.read_text())
        report.write_text(json.dumps({**told, "matched_by": "module"}))
    else:
        damages()[how](report)
    code, found = checked(out / "a.safetensors", capsys)
    assert (code, found["code"]) == (2, "bad-report")
    assert "igrate again" in found["message"]
    assert migrate(given, out=out, more=("--overwrite", *COPY)) == 0
    assert checked(out / "a.safetensors", capsys)[0] == 0
