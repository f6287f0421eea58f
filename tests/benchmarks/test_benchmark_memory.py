"""The benchmark of memory: it runs, and its figures are what they are called."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from prolora_jax.benchmarks import memory
from prolora_jax.cli import benchmark_tables as tables
from prolora_jax.cli.main import run


def test_quick_benchmark_of_memory(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    file = tmp_path / "memory.json"
    given = ["benchmark", "memory", "--quick", "--way", "copy", "-q", "--json", "--out", str(file)]
    assert run(given) == 0
    assert capfd.readouterr().err == ""
    found = json.loads(file.read_text())
    runs = found["results"]["ways"]["copy"]
    assert [runs[which]["files"] for which in ("some", "many")] == [8, 16]
    if runs["growth"] is not None:
        sizes = [runs[which]["bytes"] for which in ("some", "many")]
        assert min(sizes) > 2**26  # NumPy and JAX alone
        assert runs["growth"] == pytest.approx(sizes[1] / sizes[0] - 1)
    tables.show_memory(Console(), found)
    assert "targets are not judged" in capfd.readouterr().out


def test_every_target_can_be_met_and_missed():
    some, many = {"files": 64, "bytes": 3 * 2**30}, {"files": 1024, "bytes": 3 * 2**30}
    good = {"some": some, "many": many, "growth": 0.0}
    assert [v["met"] for v in memory.judged({"copy": good})] == [True] * 2
    bad = {"some": some | {"bytes": 5 * 2**30}, "many": many, "growth": 0.06}
    assert [v["met"] for v in memory.judged({"copy": bad})] == [False] * 2
    assert memory.judged({"copy": good | {"growth": None}}) == []


def test_a_folder_without_a_pair_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["benchmark", "memory", "--pair", str(tmp_path), "-q"]) == 2
    assert "make_checkpoint_pair" in capsys.readouterr().err
