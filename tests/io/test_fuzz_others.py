"""Broken PEFT folders, msgpack, indexes, plans, reports, manifests, stores are read or refused."""

import runpy
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_mutated_files_of_every_kind_are_read_or_refused(monkeypatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "default-store"))
    fuzz = runpy.run_path(str(SCRIPTS / "fuzz_others.py"))
    (tmp_path / "work").mkdir()
    result = fuzz["run"](fuzz["QUICK"], 4, tmp_path / "work")
    assert result["failures"] == []
    assert sum(result["cases"].values()) == fuzz["QUICK"]
    assert all(result["cases"].values())
    assert sum(code.get("read", 0) for code in result["counts"].values()) > 10
