"""A few runs killed at random moments; `scripts/soak_kill.py` does it hundreds of times."""

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "soak_kill.py"))
Soak, Failed, prints = SCRIPT["Soak"], SCRIPT["Failed"], SCRIPT["prints"]


def test_killed_runs_lose_nothing_and_redo_nothing(tmp_path: Path):
    soak = Soak(tmp_path / "soak", files=20, seed=12)
    found = soak.run(kills=4)
    assert found["kills"] >= 4
    assert found["files"] == 20
    assert found["usable"] == 18


def test_what_is_torn_missing_or_redone_is_seen(tmp_path: Path):
    """The check itself: each kind of damage is told from a folder that is as it must be."""
    soak = object.__new__(Soak)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "a.safetensors").write_bytes(b"a")
    soak.outputs, soak.stored = prints(whole), {}
    soak._finished = lambda out: ["a.safetensors"]
    bases = tmp_path / "bases"
    with pytest.raises(Failed, match="report.json: its output is called finished"):
        soak._check(whole, bases, {})
    (whole / "a.safetensors.report.json").write_text("{}")
    before = soak._check(whole, bases, {})
    assert soak._check(whole, bases, before) == before
    (whole / "a.safetensors").unlink()
    with pytest.raises(Failed, match="not there"):
        soak._check(whole, bases, before)
    (whole / "a.safetensors").write_bytes(b"b")
    with pytest.raises(Failed, match="torn"):
        soak._check(whole, bases, before)
    (whole / "a.safetensors").write_bytes(b"a")
    (whole / "c.safetensors").write_bytes(b"")
    with pytest.raises(Failed, match="torn"):
        soak._check(whole, bases, {})
    (whole / "c.safetensors").unlink()
    with pytest.raises(Failed, match="written again"):
        soak._check(whole, bases, {"a.safetensors": (1, 1)})
