"""The benchmark of catalogs: it runs, and its figures are what they are called."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from prolora_jax.benchmarks import catalog, timing
from prolora_jax.cli import benchmark_tables as tables
from prolora_jax.cli.main import run


def test_quick_benchmark_of_a_catalog(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    file = tmp_path / "catalog.json"
    assert run(["benchmark", "catalog", "--quick", "-q", "--json", "--out", str(file)]) == 0
    assert capfd.readouterr().err == ""
    found = json.loads(file.read_text())
    results = found["results"]
    assert results["files"] == catalog.QUICK_FILES
    whole, read, write = (results["samples"][name] for name in ("whole", "read", "write"))
    assert all(len(sample["cpu_s"]) == timing.ROUNDS for sample in (whole, read, write))
    share = (read["median_s"] + write["median_s"]) / whole["median_s"]
    assert results["io_share"] == pytest.approx(share)
    assert 0 < share < 1
    assert min(results["floor_s"].values()) > 0
    bound = max(results["floor_s"].values()) / whole["median_s"]
    assert results["share_of_bound"] == pytest.approx(bound)
    assert min(results["bytes"].values()) > 0
    tables.show_catalog(Console(), found)
    assert "targets are not judged" in capfd.readouterr().out
    tables.show_catalog(Console(width=200), found | {"quick": False})
    assert "MISSED" in capfd.readouterr().out


def test_every_target_can_be_missed():
    good = {"files": 8, "share_of_bound": 0.7, "io_share": 0.1}
    assert [v["met"] for v in catalog.judged(good)] == [True] * 2
    bad = {"files": 8, "share_of_bound": 0.5, "io_share": 0.2}
    assert [v["met"] for v in catalog.judged(bad)] == [False] * 2


def test_a_pair_of_real_size_has_to_be_made_first(capfd: pytest.CaptureFixture[str]):
    assert run(["benchmark", "catalog", "-q"]) == 2
    assert "make_checkpoint_pair.py" in capfd.readouterr().err
