"""`prolora fleet`: a catalog from the command line, with processes of this host."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from seaweed import use
from sharded_bases import model_of_many_shapes
from small_adapters import write
from toy_pair import make_files

from prolora_jax.catalog.fleet.inputs import FleetInput
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.local_run import RunShare
from prolora_jax.cli.main import run
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.outputs.manifest import Manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fleet")
    made = make_files(place / "toys")
    shutil.move(made.source, place / "sdxl")
    shutil.move(made.target, place / "ssd-1b")
    for seed in range(2):
        path = place / "loras" / f"a{seed}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write(path, seed, (4,))
    return place


@pytest.fixture
def say(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command; its exit code, and what it printed as JSON."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PROLORA_STORE", str(folder / "store"))

    def said(*words: str) -> tuple[int, Any]:
        code = run([*words, "--json", "-q"])
        return code, json.loads(capsys.readouterr().out)

    return said


BASES = ("--source", "sdxl", "--target", "ssd-1b")


def test_a_run_and_what_is_asked_of_it(say, folder: Path):
    code, told = say("fleet", "run", "loras", *BASES, "--out", "out", "--local", "2")
    assert code == 0
    assert told["run"] == {
        "done": 2,
        "found": {"done": 2},
        "left": 0,
        "stopped": False,
        "complete": True,
    }
    code, told = say("migrate", "loras", *BASES, "--out", "one")
    assert code == 0
    for path in (folder / "one").rglob("*.*"):
        if "manifest" not in path.name and path.is_file():
            assert (folder / "out" / path.name).read_bytes() == path.read_bytes()
    code, told = say("fleet", "status", "out", "--export", "t.jsonl", "--report", "page.html")
    assert (code, told["by_state"]) == (0, {"migrated": 2})
    assert told["finished"]
    assert len((folder / "t.jsonl").read_text().splitlines()) == 2
    assert "a1.safetensors" in (folder / "page.html").read_text()
    with Manifest(folder / "out") as manifest:
        assert [r.state for r in manifest.records()] == ["migrated"] * 2
    assert say("status", "out")[1]["by_state"] == {"migrated": 2}
    # The engine of one machine goes on where the fleet has ended, and has nothing to do.
    before = (folder / "out" / "a0.safetensors").stat().st_mtime_ns
    assert say("migrate", "loras", *BASES, "--out", "out")[0] == 0
    assert (folder / "out" / "a0.safetensors").stat().st_mtime_ns == before
    assert say("fleet", "verify", "out")[1]["whole"] == 2
    (folder / "out" / "a0.safetensors").write_bytes(b"torn")
    code, told = say("fleet", "verify", "out")
    assert (code, [*told["problems"]]) == (1, ["a0.safetensors"])
    assert say("fleet", "retry", "out", "--damaged")[1] == {"again": ["a0.safetensors"]}
    again = ("--shard", "0/1", "--store-limit", "1")
    code, told = say("fleet", "run", "loras", *BASES, "--out", "out", *again)
    assert (code, told["run"]["done"]) == (0, 1)
    # What the run has used, and no running process any more, is over the limit.
    assert not [*(folder / "store").rglob("*.v*.*")]
    assert say("fleet", "verify", "out")[0] == 0
    code, told = say("fleet", "run", "loras", *BASES, "--out", "out", "--scale", "0.5")
    assert (code, told["code"]) == (2, "locked")


def test_a_part_without_adapters_is_done_at_once(say, folder: Path):
    """Of more parts than adapters some are empty; which, their names say, so all are asked here."""
    told = [
        say("fleet", "run", "loras", *BASES, "--out", "never-begun", "--shard", f"{part}/1000")
        for part in range(3)
    ]
    assert [code for code, _ in told] == [0] * 3
    assert all(said["run"]["left"] == said["run"]["done"] == 0 for _, said in told)
    assert all(said["summary"] is None for _, said in told)


def test_hosts_share_a_store(say, folder: Path, monkeypatch: pytest.MonkeyPatch):
    shared, model = f"file://{folder}/shared", model_of_many_shapes(folder)
    build = ("subspaces", "build", model.location, "--modules", "linear", "--store", shared)
    code, told = say(*build)
    assert (code, told["store"]) == (0, f"{folder}/shared")
    made = {path.name for path in (folder / "shared").glob("*.safetensors")}
    assert [(one["computed"], one["modules"]) for one in told["models"]] == [(len(made), len(made))]
    assert made
    monkeypatch.setenv("PROLORA_STORE", str(folder / "two" / "bases"))  # another host
    code, told = say(*build)
    assert (code, [one["computed"] for one in told["models"]]) == (0, [0])
    (copy,) = (folder / "two").glob("bases-of-*")
    assert {path.name for path in copy.glob("*.safetensors")} == made
    for words in (("list",), ("prune", "--dry-run")):
        code, told = say("subspaces", *words, "--store", shared)
        assert (code, told["code"]) == (2, "bad-option")
        assert "expected a local folder" in told["message"]
    jobs = []

    def run_here(job: FleetJob, *_: object) -> None:
        jobs.append(job)
        raise UsageError("no more than that", code=Refusal.BAD_OPTION)

    monkeypatch.setattr("prolora_jax.catalog.fleet.local_run.run_here", run_here)
    words = ("fleet", "run", "loras", *BASES, "--out", "o", "--store", shared, "--shard")
    assert [say(*words, part)[0] for part in ("2/3", "0/1")] == [2, 2]
    assert [(job.store, job.shared, job.share) for job in jobs] == [
        (copy, folder / "shared", (2, 3)),
        (copy, folder / "shared", None),
    ]


@pytest.mark.parametrize("place", ["inputs", "--out", "--store", "--source"])
def test_a_store_that_is_not_there_is_said_at_the_start(
    say, place: str, monkeypatch: pytest.MonkeyPatch
):
    """Before any worker is started, who would wait for it."""
    pytest.importorskip("obstore", reason="obstore is not installed (the extra `fleet`)")
    use("http://127.0.0.1:1", monkeypatch)
    monkeypatch.setattr("prolora_jax.io.places.pacing.FIRST_PATIENCE", 0.2)
    monkeypatch.setattr("prolora_jax.catalog.fleet.local_run.Crew", None)
    words = {"--source": "sdxl", "--target": "ssd-1b", "--out": f"none-{place}"}
    inputs = "s3://bucket/loras" if place == "inputs" else "loras"
    words |= {} if place == "inputs" else {place: "s3://bucket/x"}
    code, told = say("fleet", "run", inputs, *(word for pair in words.items() for word in pair))
    assert (code, told["code"]) == (2, "cannot-write")
    assert "found no store that answers (connection refused)" in told["message"]


def test_receipts_in_one_table(say, folder: Path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra `fleet`)")
    broken = folder / "mixed" / "broken.safetensors"
    shutil.copytree(folder / "loras", broken.parent)
    broken.write_bytes(b"broken")
    # Each run's exit code is about what it has done itself.
    job = ("fleet", "run", "mixed", *BASES, "--out", "table")
    unit = (FleetInput(broken.name, ""),)
    part = next(part for part in range(3) if RunShare(1, part, 3).has(unit))
    assert say(*job, "--shard", f"{part}/3")[0] == 1
    ended = folder / "table/.prolora/ended.json"
    assert not ended.exists()
    # In the middle of a run: that goes on.
    assert say("fleet", "compact", "table")[0] == 0
    assert not ended.exists()
    assert not say("fleet", "status", "table")[1]["finished"]
    assert say(*job, "--shard", f"{(part + 1) % 3}/3")[0] == 0
    assert say(*job, "--shard", f"{(part + 2) % 3}/3")[0] == 0
    assert ended.exists()
    assert say(*job)[0] == 0
    assert say("fleet", "compact", "table") == (0, {"receipts": 3})
    assert say("fleet", "status", "table")[1]["by_state"] == {"migrated": 2, "refused": 1}


WRONG = {
    "retry": (["fleet", "retry", "x"], "--quarantined or --damaged"),
    "shard": (["--shard", "4/4"], "expected i/n"),
    "no part": (["--shard", "x"], "expected i/n"),
    "local": (["--local", "0"], "at least one process"),
    "store": (["--store", "s3://KEY:SECRET@bucket/store"], "leave them out"),
    "time": (["--time-limit", "nan"], "and a time"),
    "secret": (["fleet", "status", "s3://KEY:SECRET@bucket/x"], "leave them out"),
    "nothing": (["fleet", "status", "sdxl"], "found no .prolora/job.json"),
    "no receipts": (["fleet", "compact", "sdxl"], "found no .prolora/job.json"),
    "no outputs": (["fleet", "verify", "sdxl"], "found no .prolora/job.json"),
    "none again": (["fleet", "retry", "sdxl", "--quarantined"], "found no .prolora/job.json"),
    "file": (["fleet", "run", "sdxl/x", *BASES, "--out", "o"], "no such file or folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_said(say, folder: Path, case: str):
    words, message = WRONG[case]
    if words[0] != "fleet":
        words = ["fleet", "run", "loras", *BASES, "--out", "o", *words]
    code, told = say(*words)
    assert (code, told["ok"]) == (2, False)
    assert message in told["message"]
    assert "SECRET" not in told["message"]
    assert not (folder / "sdxl/.prolora").exists()
