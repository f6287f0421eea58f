"""A few runs of a fleet that are killed and hindered; `scripts/soak_fleet.py` does it hundreds of
times. The checks themselves: each kind of damage is told from a place that is as it must be."""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("obstore", reason="obstore is not installed (the extra `fleet`)")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
soak_fleet, rounds = import_module("soak_fleet"), import_module("soak_fleet_rounds")
hosts, places = import_module("soak_fleet_hosts"), import_module("soak_fleet_places")
Failed, FolderOutputs, prints = hosts.Failed, places.FolderOutputs, places.prints

NAME = "a.safetensors"


def test_killed_runs_come_to_one_machines_outputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", None)  # which the script sets for its process
    found = tmp_path / "found.json"
    soak_fleet.main([str(tmp_path / "soak"), "--quick", "--out", str(found)])
    (told,) = json.loads(found.read_text())
    assert told["finding"] is None
    assert told["killed_in_all"] >= 3
    assert (told["files"], told["usable"]) == (10, 8)


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """A soak and the place of a run over one file, as it must be."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out = tmp_path / "out"
    (out / ".prolora/receipts/00").mkdir(parents=True)
    (out / NAME).write_bytes(b"a")
    (out / f"{NAME}.report.json").write_text('{"input": {"location": "here"}, "verdict": "ok"}')
    receipt = {"record": {"input": NAME, "state": "duplicate", "reason": None}}
    (out / ".prolora/receipts/00/1.json").write_text(json.dumps(receipt))
    soak: Any = object.__new__(rounds.Soak)
    soak.folder = tmp_path
    soak.outputs, soak.states = prints(FolderOutputs(out)), [(NAME, "migrated", "")]
    return soak, out


def check(done: tuple[Any, Path], seen: dict | None = None) -> None:
    soak, out = done
    soak.check(FolderOutputs(out), hosts.LocalEngine(1), {} if seen is None else seen)


def test_where_an_input_is_may_differ(done: tuple[Any, Path]):
    report = done[1] / f"{NAME}.report.json"
    report.write_text(report.read_text().replace("here", "there"))
    check(done)
    report.write_text(report.read_text().replace("ok", "partial"))
    with pytest.raises(Failed, match=r"a.safetensors.report.json: not what"):
        check(done)


def test_what_is_torn_missing_or_too_much_is_seen(done: tuple[Any, Path]):
    _, out = done
    (out / NAME).write_bytes(b"b")
    with pytest.raises(Failed, match=r"a.safetensors: not what"):
        check(done)
    (out / NAME).unlink()
    with pytest.raises(Failed, match=r"a.safetensors: not what"):
        check(done)
    (out / NAME).write_bytes(b"a")
    (out / "b.safetensors").write_bytes(b"b")
    with pytest.raises(Failed, match=r"b.safetensors: not what"):
        check(done)


def test_what_is_written_again_is_seen(done: tuple[Any, Path]):
    soak, out = done
    seen: dict = {}
    soak.require_untouched(FolderOutputs(out), seen)
    check(done, seen)
    (out / "new").write_bytes(b"a")
    (out / "new").rename(out / NAME)
    with pytest.raises(Failed, match="was there, and was written again"):
        check(done, seen)


def test_receipts_and_what_is_left_are_seen(done: tuple[Any, Path]):
    soak, out = done
    receipt = out / ".prolora/receipts/00/1.json"
    text = receipt.read_text()
    receipt.with_name("2.json").write_text(text)
    with pytest.raises(Failed, match="receipts of 2 inputs"):
        check(done)
    receipt.with_name("2.json").unlink()
    receipt.write_text(text.replace("duplicate", "failed"))
    with pytest.raises(Failed, match="receipts of 1 inputs"):
        check(done)
    receipt.write_text(text)
    (out / ".0123456789abcdef.prolora-tmp").write_bytes(b"half of it")
    with pytest.raises(Failed, match="left behind: files"):
        check(done)


def test_a_process_that_is_left_is_seen(done: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rounds, "marked", lambda folder: [4711])
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(
        rounds,
        "time",
        SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None),
    )
    with pytest.raises(Failed, match=r"processes \[4711\]"):
        check(done)
