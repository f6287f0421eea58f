"""Runs of a fleet by processes of one host: what ends a worker costs itself alone, and no kill
loses, tears or repeats anything. Workers without an engine (`fleet_workers`)."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import fleet_workers
import pytest
from fleet_workers import ToyWorker

from prolora_jax.catalog.fleet import dispatch, giving, holding, local_run
from prolora_jax.catalog.fleet.checking import check_outputs, retry_damaged, retry_quarantined
from prolora_jax.catalog.fleet.chunk import ChunkWork
from prolora_jax.catalog.fleet.inputs import FleetInput
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.local_run import RunShare, run_here
from prolora_jax.catalog.fleet.receipts import read_receipts
from prolora_jax.catalog.fleet.standing import standing
from prolora_jax.errors import OutputError, ProloraError, Refusal, UsageError
from prolora_jax.io.adapters.inputs import Input
from prolora_jax.io.places.local import LocalPlace
from prolora_jax.io.places.scratch import scratch
from prolora_jax.migration.files import Writing

SUPPORT = Path(fleet_workers.__file__).parent
ROOT = SUPPORT.parents[1]


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Workers without an engine; whatever ended them, their folders are gone when all is done."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(local_run, "start_worker", fleet_workers.start_toy)
    yield
    with scratch():
        assert len(list(temporary.glob("prolora-fleet-*"))) == 1
    assert not list(temporary.glob("*prolora-fleet-*"))


def catalog(folder: Path, *names: str) -> Path:
    place = folder / "catalog"
    for name in names:
        path = place / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"this is {name}".encode())
    return place


def job(inputs: Path, **changes) -> FleetJob:
    out = inputs.parent / "out"
    return FleetJob(str(inputs), str(out), "source", "target", **changes)


def states(inputs: Path) -> dict[str, str]:
    known = read_receipts(LocalPlace(inputs.parent / "out"))
    return {name.removesuffix(".safetensors"): k.receipt.state for name, k in known.items()}


def assert_whole(inputs: Path, *without: str) -> None:
    """Every output is what its input says, with a report and a receipt, and nothing else is."""
    out = inputs.parent / "out"
    expected = {
        p.relative_to(inputs).as_posix(): p.read_bytes()[::-1]
        for p in inputs.rglob("*.safetensors")
        if p.stem not in without
    }
    found = {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and ".prolora" not in p.parts
    }
    reports = {f"{name}.report.json": b"{}" for name in expected}
    assert found == expected | reports
    known = read_receipts(LocalPlace(out))
    assert {n for n, k in known.items() if k.receipt.state == "done"} == {*expected}


def test_a_run_is_done_once(tmp_path: Path):
    inputs = catalog(tmp_path, *(f"a{n}" for n in range(20)), "b/c/d", "b/é ü")
    calls: list[tuple[str, int, int]] = []
    found = run_here(job(inputs), RunShare(2), lambda *said: calls.append(said))
    assert (found.done, found.left, found.stopped, found.complete) == (22, 0, False, True)
    assert calls[-1] == ("files", 22, 22)
    assert_whole(inputs)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    again = run_here(job(inputs), RunShare(2))
    assert (again.done, again.left) == (0, 0)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    (inputs / "a3.safetensors").write_bytes(b"another one")
    catalog(tmp_path, "new")
    assert run_here(job(inputs), RunShare(2)).done == 2
    assert_whole(inputs)


def test_another_job_is_refused(tmp_path: Path):
    inputs = catalog(tmp_path, "a")
    run_here(job(inputs), RunShare())
    with pytest.raises(UsageError, match="another job") as refused:
        run_here(job(inputs, writing=Writing("peft")), RunShare())
    assert refused.value.code is Refusal.LOCKED
    assert_whole(inputs)


def test_a_poison_file_costs_itself_alone(tmp_path: Path):
    good = [f"a{n}" for n in range(6)]
    inputs = catalog(tmp_path, *good, "segv", "broken")
    found = run_here(job(inputs), RunShare(2))
    assert found.found == {"done": 6, "quarantined": 2}
    assert (found.left, found.complete) == (0, True)
    assert_whole(inputs, "segv", "broken")
    messages = {k.receipt.record.input: k.receipt.record.message or "" for k in known_of(inputs)}
    assert "signal SIGSEGV" in messages["segv.safetensors"]
    assert "RuntimeError: made" in messages["broken.safetensors"]
    assert run_here(job(inputs), RunShare(2)).done == 0  # nobody asked for it again
    # Now it is another file, and somebody asks.
    (inputs / "segv.safetensors").rename(inputs / "renamed.safetensors")
    assert retry_quarantined(LocalPlace(tmp_path / "out")) == [
        "broken.safetensors",
        "segv.safetensors",
    ]
    (inputs / "broken.safetensors").unlink()
    assert run_here(job(inputs), RunShare(1)).found == {"done": 1}


def known_of(inputs: Path):
    return list(read_receipts(LocalPlace(inputs.parent / "out")).values())


def test_what_is_endless_or_needs_all_memory_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dispatch, "TRIES", 1)
    inputs = catalog(tmp_path, "a", "endless", "killed")
    found = run_here(job(inputs), RunShare(2, silence=3))
    assert found.found == {"done": 1, "quarantined": 2}
    assert_whole(inputs, "endless", "killed")
    told = [k.receipt.record.message or "" for k in known_of(inputs) if k.receipt.quarantined]
    # The system ends what needs too much as this does what says nothing.
    assert all("signal SIGKILL, perhaps for want of memory" in message for message in told)


def test_a_stopped_worker_does_not_hold_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever is idle takes a second copy of what it has, and it ends with the run."""
    monkeypatch.setattr(holding, "SLOW", 1.0)
    inputs = catalog(tmp_path, "a", "b", "c", "stopped")
    found = run_here(job(inputs), RunShare(2))
    assert (found.done, found.found, found.complete) == (4, {"done": 4}, True)
    assert_whole(inputs)
    assert [p.name for p in (tmp_path / "temporary").iterdir()] == ["stopped.safetensors.mark"]


def test_trouble_of_the_host_is_no_files_fault(tmp_path: Path):
    inputs = catalog(tmp_path, *(f"trouble{n}" for n in range(4)))
    with pytest.raises(OutputError, match=r"trouble that is no adapter's \(.*disk full"):
        run_here(job(inputs), RunShare(1))
    assert states(inputs) == {}


def test_an_input_that_can_never_be_written_costs_itself_alone(tmp_path: Path):
    bad = [f"{n}trouble" for n in range(4)]  # more than a host may have in a row
    inputs = catalog(tmp_path, *bad, *(f"{n}a" for n in range(8)))
    found = run_here(job(inputs), RunShare(1))
    assert (found.found, found.left, found.complete) == ({"done": 8, "failed": 4}, 4, True)
    assert_whole(inputs, *bad)
    for record in (k.receipt.record for k in known_of(inputs) if k.receipt.state == "failed"):
        assert record.reason == str(Refusal.CANNOT_WRITE)
        assert "disk full" in (record.message or "")
    # It is tried again, and where nothing else is to be done, nothing tells it from the host's.
    with pytest.raises(OutputError, match="trouble that is no adapter's"):
        run_here(job(inputs), RunShare(1))


def test_a_folder_that_can_never_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """More than a host has in flight, and chance finds more of it: it is not yet the host's."""
    monkeypatch.setattr(random, "randrange", lambda count: 0)
    bad = [f"0/trouble{n:02}" for n in range(2 * dispatch.MOST + 6)]
    inputs = catalog(tmp_path, *bad, *(f"1/a{n}" for n in range(20)))
    found = run_here(job(inputs), RunShare(1))
    assert (found.found, found.complete) == ({"done": 20, "failed": len(bad)}, True)


def test_workers_that_never_get_ready_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inputs = catalog(tmp_path, "a")
    monkeypatch.setattr(local_run, "start_worker", fleet_workers.start_never)
    with pytest.raises(ProloraError, match="ended before they were ready") as told:
        run_here(job(inputs), RunShare(1))
    assert told.value.code is Refusal.WORKER_ENDED
    monkeypatch.setattr(local_run, "start_worker", fleet_workers.start_refused)
    with pytest.raises(OutputError, match="the place is gone"):
        run_here(job(inputs), RunShare(1))


def test_a_worker_that_never_says_a_word_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inputs = catalog(tmp_path, "a")
    monkeypatch.setattr(local_run, "start_worker", fleet_workers.start_endless)
    monkeypatch.setattr(giving, "_NEVER_READY", 1)
    monkeypatch.setattr(giving, "SILENCE", 1.0)
    with pytest.raises(ProloraError, match="ended before they were ready"):
        run_here(job(inputs), RunShare(1, silence=0.5))


def test_who_is_to_stop_reads_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inputs, read = catalog(tmp_path, *(f"a{n:02}" for n in range(40))), []
    monkeypatch.setattr(
        local_run, "standing", lambda out, units: read.append(out) or standing(out, units)
    )
    found = run_here(job(inputs), RunShare(1), lambda *_: signal.raise_signal(signal.SIGTERM))
    assert (found.stopped, found.complete, len(read)) == (True, False, 1)
    assert 0 < found.left == 40 - len(states(inputs)) < 40


def test_damage_is_seen_and_mended(tmp_path: Path):
    inputs = catalog(tmp_path, "a", "b", "c")
    run_here(job(inputs), RunShare())
    out = tmp_path / "out"
    place = LocalPlace(out)
    assert check_outputs(place).problems == {}
    (out / "a.safetensors").write_bytes(b"torn")
    (out / "b.safetensors.report.json").unlink()
    check = check_outputs(place)
    assert (check.outputs, check.whole) == (3, 1)
    assert "has other content" in check.problems["a.safetensors"]
    assert "is not there" in check.problems["b.safetensors"]
    assert retry_damaged(place) == ["a.safetensors", "b.safetensors"]
    assert run_here(job(inputs), RunShare()).done == 2
    assert check_outputs(place).problems == {}
    assert_whole(inputs)


def test_outputs_of_others_stay(tmp_path: Path):
    inputs = catalog(tmp_path, "a", "b")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.safetensors").write_bytes(b"somebody's")
    for _ in range(2):
        assert run_here(job(inputs), RunShare()).left == 1
        assert (tmp_path / "out" / "a.safetensors").read_bytes() == b"somebody's"
        assert states(inputs) == {"a": "failed", "b": "done"}
    (tmp_path / "out" / "a.safetensors").unlink()
    assert run_here(job(inputs), RunShare()).left == 0
    assert_whole(inputs)


class Killed(BaseException):
    """A worker is no more."""


def test_a_worker_may_die_at_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before and after each file that a chunk writes, in their order; the next one mends it."""
    real, calls = LocalPlace._write, [0]
    work = [FleetInput(f"a{n}.safetensors", "etag") for n in range(2)]
    for dies_at in count():
        inputs = catalog(tmp_path / str(dies_at), "a0", "a1")
        items = [Input(inputs / one.name, Path(one.name)) for one in work]
        todo = ChunkWork(tuple(replace(o, item=i) for o, i in zip(work, items, strict=True)), {})
        calls[0] = 0

        def write(self, *given, dies_at=dies_at):
            if calls[0] == dies_at:
                raise Killed
            real(self, *given)
            calls[0] += 1
            if calls[0] == dies_at:
                raise Killed

        monkeypatch.setattr(LocalPlace, "_write", write)
        ended = False
        try:
            worker = ToyWorker(job(inputs), threading.Event(), lambda: None)
            worker(todo)
        except Killed:
            ended = True
        monkeypatch.setattr(LocalPlace, "_write", real)
        worker = ToyWorker(job(inputs), threading.Event(), lambda: None)
        assert worker(todo).states == {one.name: "done" for one in work}
        assert_whole(inputs)
        if not ended:
            assert dies_at == calls[0] + 1 == 8  # job.json, and for each: output, report, receipt
            return


def driver(inputs: Path, shard: int = 0, shards: int = 1) -> subprocess.Popen[str]:
    out = inputs.parent / "out"
    path = os.pathsep.join([str(ROOT), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    script = inputs.parent / "driver.py"
    if not script.exists():  # a driver that is starting would find it empty
        script.write_text(fleet_workers.MAIN)
    return subprocess.Popen(
        [sys.executable, script, inputs, out, str(shard), str(shards)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    try:
        text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except OSError:
        return []
    commands = ((int(pid), Path(f"/proc/{pid}/cmdline")) for pid in text.split())
    return [pid for pid, at in commands if at.exists() and b"spawn_main" in at.read_bytes()]


def test_twenty_kills_lose_nothing_and_repeat_nothing(tmp_path: Path):
    """Workers and drivers, by SIGKILL, at random moments; two drivers at once now and then."""
    inputs = catalog(tmp_path, *(f"s{n % 3}/a{n}" for n in range(150)))
    chance, kills, rounds, wanted = random.Random(5), 0, 0, 300
    written: dict[Path, int] = {}
    drivers = [driver(inputs), driver(inputs)]
    try:
        end = time.monotonic() + 150
        while kills < 20:
            assert time.monotonic() < end
            time.sleep(chance.uniform(0.1, 0.8))
            number = chance.randrange(2)
            workers = children(drivers[number])
            if workers and chance.random() < 0.6:
                os.kill(chance.choice(workers), signal.SIGKILL)
                kills += 1
            elif chance.random() < 0.5 or drivers[number].poll() is not None:
                kills += drivers[number].poll() is None
                drivers[number].kill()
                drivers[number].communicate()
                drivers[number] = driver(inputs)
            # What has a receipt is never written again.
            for known in read_receipts(LocalPlace(tmp_path / "out")).values():
                for key in known.receipt.files:
                    path = tmp_path / "out" / key
                    assert written.setdefault(path, path.stat().st_ino) == path.stat().st_ino
            if len(written) == wanted:
                # All done: more work for the kills that are left.
                catalog(tmp_path, *(f"more{rounds}/a{n}" for n in range(60)))
                rounds, wanted = rounds + 1, wanted + 120
    finally:
        for one in drivers:
            one.kill()
            one.communicate()
    retry_quarantined(LocalPlace(tmp_path / "out"))  # who was killed three times over one file
    found = run_here(job(inputs), RunShare(2))
    assert (found.left, found.complete) == (0, True)
    assert_whole(inputs)


def test_shards_share_a_catalog(tmp_path: Path):
    inputs = catalog(tmp_path, *(f"a{n}" for n in range(30)))
    drivers = [driver(inputs, shard, 3) for shard in range(3)]
    said = [one.communicate(timeout=60)[0] for one in drivers]
    assert said == ["0 False\n"] * 3
    assert_whole(inputs)
    assert (tmp_path / "out/.prolora/job.json").is_file()
    sizes = [sum(map(RunShare(1, shard, 3).has, map(unit, inputs.iterdir()))) for shard in range(3)]
    assert sum(sizes) == 30
    assert min(sizes) > 0


def unit(path: Path):
    return (FleetInput(path.name, ""),)


def test_sigterm_stops_a_run_that_can_go_on(tmp_path: Path):
    inputs = catalog(tmp_path, *(f"a{n:03}" for n in range(400)))
    one = driver(inputs)
    while not (tmp_path / "out/.prolora/receipts").is_dir():
        time.sleep(0.05)
    one.terminate()
    said, _ = one.communicate(timeout=40)
    left = int(said.split()[0])
    assert one.returncode == 0
    assert said.endswith("True\n")
    assert 0 < left < 400
    assert len(states(inputs)) == 400 - left
    assert not list((tmp_path / "out").rglob(".*.prolora-tmp"))
    assert run_here(job(inputs), RunShare(2)).left == 0
    assert_whole(inputs)
