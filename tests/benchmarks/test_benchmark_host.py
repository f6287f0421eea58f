"""The benchmark of the host: it runs, and its figures are what they are called."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from prolora_jax.benchmarks import host
from prolora_jax.cli import benchmark_tables as tables
from prolora_jax.cli.main import run


def test_quick_benchmark_of_the_host(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    file = tmp_path / "host.json"
    given = ["benchmark", "host", "--quick", "--no-full", "-q", "--json", "--out", str(file)]
    assert run(given) == 0
    assert capfd.readouterr().err == ""
    found = json.loads(file.read_text())
    results = found["results"]
    assert results["files"] == host.QUICK_FILES
    assert results["seconds_per_file"].keys() == {"bytes", "copy", "alone"}
    assert results["times"] > 1
    assert min(results["bytes"].values()) > 0
    tables.show_host(Console(), found)
    assert "targets are not judged" in capfd.readouterr().out


def test_every_target_can_be_missed_and_met():
    seconds = {"bytes": 0.04, "copy": 0.1, "alone": 0.6, "full": 1.0, "products": 0.95}
    found = {"files": 16, "seconds_per_file": seconds, "times": 2.5}
    assert [v["met"] for v in host.judged(found, small=False)] == [True, True]
    slow = {**found, "times": 3.5, "seconds_per_file": seconds | {"full": 1.2}}
    assert [v["met"] for v in host.judged(slow, small=False)] == [False, False]
    assert [v["met"] for v in host.judged(found, small=True)] == [True]
    assert [v["met"] for v in host.judged(found | {"times": 9.0}, small=True)] == [False]


def test_a_folder_without_a_pair_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["benchmark", "host", "--pair", str(tmp_path), "-q"]) == 2
    assert "make_checkpoint_pair" in capsys.readouterr().err
