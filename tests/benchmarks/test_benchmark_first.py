"""The benchmark of one file: it runs, and does what `prolora migrate` does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_adapters import write
from toy_pair import make_files

from prolora_jax.benchmarks import first, one_file
from prolora_jax.cli import benchmark_tables as tables
from prolora_jax.cli.main import run

STATES = ("cold", "again", "warm")


def test_quick_benchmark_of_one_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    file = tmp_path / "first.json"
    given = ["benchmark", "first", "--quick", "--way", "copy", "-q", "--json", "--out", str(file)]
    assert run(given) == 0
    assert capfd.readouterr().err == ""
    found = json.loads(file.read_text())
    ways = found["results"]["ways"]
    assert ways.keys() == {"copy"}
    assert found["targets"] == []
    for runs in ways.values():
        assert 0 < runs["stored"] < 1e6
        for state in STATES:
            seconds = runs[state]["cpu_s"]
            assert tuple(seconds) == one_file.STAGES
            assert runs[state]["total_cpu_s"] == pytest.approx(sum(seconds.values()))
            assert min(seconds["start"], seconds["read"], seconds["write"]) > 0
    assert ways["copy"]["cold"]["cpu_s"]["subspaces"] == 0
    tables.show_first(Console(), found)
    assert "targets are not judged" in capfd.readouterr().out


def test_a_measured_migration_is_that_of_the_command(tmp_path: Path):
    """The same bytes, the same store behind it, and every stage of a projection has its time."""
    toy = make_files(tmp_path / "toy")
    adapter = write(tmp_path / "in.safetensors", 0, (8,))
    places = {"source": str(toy.source), "target": str(toy.target)}
    found: dict[str, Any] = one_file.measure(
        adapter=str(adapter),
        out=str(tmp_path / "measured.safetensors"),
        store=str(tmp_path / "one"),
        keeps=True,
        options={"method": "prolora-full"},
        **places,
    )
    flags = [word for name, place in places.items() for word in (f"--{name}", place)]
    out = tmp_path / "asked.safetensors"
    asked = ["--method", "prolora-full", "--keep-operators", "--store", str(tmp_path / "other")]
    assert run(["migrate", str(adapter), *flags, *asked, "--out", str(out), "-q"]) == 0
    assert (tmp_path / "measured.safetensors").read_bytes() == out.read_bytes()
    kept = [
        sorted(path.name for path in (tmp_path / store).glob("operators/*"))
        for store in ("one", "other")
    ]
    assert kept[0] == kept[1] != []
    assert min(found["cpu_s"].values()) > 0
    sizes = [size for size in found["peak_bytes"].values() if size is not None]
    assert sizes == sorted(sizes)


GROWN = """
from prolora_jax.io.process_memory import largest_resident_bytes
before = largest_resident_bytes()
room = b"x" * (before or 1)
del room
print(before, largest_resident_bytes())
"""


def test_the_largest_size_of_a_process_never_shrinks():
    """In a small process of its own: the one that runs the tests would double its size."""
    done = subprocess.run(
        [sys.executable, "-c", GROWN], capture_output=True, text=True, check=True, timeout=60
    )
    before, after = done.stdout.split()
    assert (before == "None") == (sys.platform != "linux")
    assert before == after == "None" or int(after) > int(before)


def test_every_target_can_be_met_and_missed():
    runs = {"total_cpu_s": 2.0, "largest_bytes": 2**29}
    good = {"cold": runs | {"total_cpu_s": 30.0}, "again": runs, "warm": runs, "stored": 10**8}
    assert [v["met"] for v in first.judged({"auto": good})] == [True] * 4
    assert [v["met"] for v in first.judged({"copy": good})] == [True] * 3
    slow = {"total_cpu_s": 50.0, "largest_bytes": 2**31}
    bad = {"cold": slow, "again": slow, "warm": slow, "stored": 10**9}
    assert [v["met"] for v in first.judged({"auto": bad})] == [False] * 4
    unknown = {state: slow | {"largest_bytes": None} for state in STATES} | {"stored": 10**9}
    assert len(first.judged({"full": unknown})) == 2


def test_a_folder_without_a_pair_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["benchmark", "first", "--pair", str(tmp_path), "-q"]) == 2
    assert "make_checkpoint_pair" in capsys.readouterr().err
