"""What is true of one input over several runs of a fleet, and between its place and others'.
Workers without an engine (`fleet_workers`), in this process."""

import os
import threading
from collections.abc import Mapping
from errno import ENOSPC
from hashlib import sha256
from pathlib import Path
from shutil import _ntuple_diskusage as usage

import pytest
from fleet_workers import ToyWorker

from prolora_jax.catalog.fleet import worker as fleet_worker
from prolora_jax.catalog.fleet.chunk import ChunkDone, ChunkWork
from prolora_jax.catalog.fleet.giving import FleetRun
from prolora_jax.catalog.fleet.inputs import find_inputs
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.local_run import RunShare, run_here
from prolora_jax.catalog.fleet.publishing import Publisher
from prolora_jax.catalog.fleet.receipts import Receipt, read_receipts
from prolora_jax.errors import OutputError, Refusal, UsageError
from prolora_jax.io.places.local import LocalPlace, sweep_unfinished
from prolora_jax.io.places.place import Content, Written
from prolora_jax.migration.files import Writing

NAME = "a.safetensors"


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A catalog of one adapter."""
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / NAME).write_bytes(b"one")
    return tmp_path / "catalog"


def job(inputs: Path, **changes) -> FleetJob:
    return FleetJob(str(inputs), str(inputs.parent / "out"), "source", "target", **changes)


def work_of(inputs: Path) -> ChunkWork:
    out = LocalPlace(inputs.parent / "out")
    return ChunkWork(tuple(find_inputs(LocalPlace(inputs), out)), read_receipts(out))


def round_of(inputs: Path, **changes) -> Receipt:
    """One run over the catalog; what its receipt says."""
    ToyWorker(job(inputs, **changes), threading.Event(), lambda: None)(work_of(inputs))
    return read_receipts(LocalPlace(inputs.parent / "out"))[NAME].receipt


def quarantine(inputs: Path) -> Receipt:
    """What a driver does after its input has ended workers."""
    out, work = LocalPlace(inputs.parent / "out"), work_of(inputs)
    run = FleetRun([work.inputs], work.before, out, RunShare(), None, False)
    run._quarantine(work.inputs[0], "signal SIGSEGV", 3)
    return read_receipts(out)[NAME].receipt


@pytest.mark.parametrize("between", ["refused", "quarantined"])
def test_an_output_stays_ours_over_a_version_that_had_none(inputs: Path, between: str):
    """Good, then bad, then good: the third takes the place of the first."""
    first = round_of(inputs)
    assert {*first.files} == {NAME, f"{NAME}.report.json"}
    (inputs / NAME).write_bytes(b"bad")
    second = round_of(inputs) if between == "refused" else quarantine(inputs)
    assert (second.state, second.files) == (between, first.files)
    assert second.record.output_hash is None
    (inputs / NAME).write_bytes(b"three")
    third = round_of(inputs)
    assert (third.state, third.round) == ("done", 2)
    assert (inputs.parent / "out" / NAME).read_bytes() == b"eerht"


def test_overwrite_is_no_other_job(inputs: Path):
    """Somebody's file is there, and whoever looked at it repeats the command as it was advised."""
    theirs = inputs.parent / "out" / NAME
    theirs.parent.mkdir()
    theirs.write_bytes(b"somebody's")
    first = round_of(inputs)
    assert (first.state, first.record.reason) == ("failed", str(Refusal.OUTPUT_EXISTS))
    assert "--overwrite" in (first.record.message or "")
    assert round_of(inputs, writing=Writing(overwrite=True)).state == "done"
    assert theirs.read_bytes() == b"eno"


def test_what_a_worker_has_filed_before_it_ended_counts(inputs: Path):
    round_of(inputs)
    out, work, calls = LocalPlace(inputs.parent / "out"), work_of(inputs), []
    run = FleetRun([work.inputs], {}, out, RunShare(), lambda *said: calls.append(said), False)
    run._died((work.inputs,), "signal SIGKILL")
    assert (run.done, run.states, run.dispatch.left) == (1, {"done": 1}, 1)  # none was given out
    assert calls == [("files", 1, 1)]
    assert run.has_settled(work.inputs)


class Contested(LocalPlace):
    """Others replace a file before us, so many times."""

    times = 2

    def replace_if(self, key: str, content: Content, etag: str, tags: Mapping[str, str]) -> Written:
        self.times -= 1
        if self.times >= 0:
            return Written(False, "theirs")
        return super().replace_if(key, content, etag, tags)


def test_who_wins_at_the_last_meeting_has_won(tmp_path: Path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / NAME).write_bytes(b"ours")
    (tmp_path / "made" / f"{NAME}.report.json").write_bytes(b"{}")
    out = Contested(tmp_path / "out")
    out.create(NAME, b"somebody's", {})
    files = Publisher(out, "job", overwrite=True).publish(tmp_path / "made", NAME, "etag", None)
    assert files[NAME].hash == sha256(b"ours").hexdigest()
    assert (tmp_path / "out" / NAME).read_bytes() == b"ours"


@pytest.mark.parametrize("read", ["inputs", "source", "target"])
def test_what_a_job_reads_is_never_replaced(inputs: Path, read: str):
    """With --overwrite nothing of it may lie below the outputs; a hub's name lies nowhere."""
    below = inputs.parent / "out" / "it"
    below.mkdir(parents=True)
    given = {"inputs": str(inputs), "source": "some/model", "target": "other/model", read: below}
    catalog, source, target = (str(given[name]) for name in ("inputs", "source", "target"))
    writing = Writing(overwrite=True)
    asked = FleetJob(catalog, str(below.parent), source, target, writing=writing)
    with pytest.raises(UsageError, match="where outputs may replace") as refused:
        run_here(asked, RunShare())
    assert refused.value.code is Refusal.OUTPUT_EXISTS
    assert [*below.parent.iterdir()] == [below]


def test_what_killed_processes_leave_goes_and_nothing_else(tmp_path: Path):
    place, seen = LocalPlace(tmp_path / "place"), []
    (tmp_path / "place").mkdir()
    left = tmp_path / "place" / ".0123456789abcdef.prolora-tmp"
    left.write_bytes(b"half of it")

    def publish(temporary: Path, path: Path) -> None:
        seen.append(sweep_unfinished(tmp_path / "place"))
        os.link(temporary, path)

    place._write(tmp_path / "place" / "k", b"whole", publish)
    assert seen == [1]
    assert [p.name for p in (tmp_path / "place").iterdir()] == ["k"]


def test_what_is_fetched_meanwhile_says_nothing_of_what_is_at_work(inputs: Path):
    """Its pieces are signs of life only of who waits for them; who is to end early begins none."""
    signs, hurried = [], threading.Event()
    worker = ToyWorker(job(inputs), hurried, lambda: signs.append("life"))
    worker.inputs.folder = None  # as a store has none
    work = ChunkWork(tuple(find_inputs(worker.inputs, worker.out)), {})
    staged = worker.stage(work)
    assert signs == ["life"]
    assert (staged.folder / "in" / NAME).read_bytes() == b"one"
    worker._at_work = True
    other = worker.stage(work)
    assert signs == ["life"]
    worker._at_work = False
    assert worker(staged).states == {NAME: "done"}
    assert not staged.folder.exists()
    hurried.set()
    for given in (other, work):
        assert worker(given) == ChunkDone({}, (NAME,))
    assert not other.folder.exists()


@pytest.mark.parametrize("where", ["scratch", "fetch", "_migrated", "_relocate"])
def test_a_full_disk_of_a_host_is_its_trouble_and_ends_no_run(
    inputs: Path, where: str, monkeypatch: pytest.MonkeyPatch
):
    """Also where what is fetched meanwhile has filled it; a store's trouble is everyone's."""
    worker = ToyWorker(job(inputs), threading.Event(), lambda: None)
    worker.inputs.folder = None  # as a store has none
    work = ChunkWork(tuple(find_inputs(worker.inputs, worker.out)), {})

    def full(*_):
        raise OutputError("no space", code=Refusal.CANNOT_WRITE) from OSError(ENOSPC, "no space")

    def silent(*_):
        raise OutputError("no answer", code=Refusal.CANNOT_WRITE)

    if where == "scratch":
        monkeypatch.setattr("tempfile.tempdir", str(inputs / NAME))
    else:
        monkeypatch.setattr(fleet_worker if where == "fetch" else worker, where, full)
    done = worker(work)
    assert (done.states, done.left) == ({}, (NAME,))
    assert done.trouble == "no space" or "cannot be written (Not a directory)" in str(done.trouble)
    assert not [*(inputs.parent / "out").glob(f"{NAME}*")]
    if where != "scratch":
        monkeypatch.setattr(fleet_worker if where == "fetch" else worker, where, silent)
        with pytest.raises(OutputError, match="no answer"):
            worker(work)


def test_what_is_at_work_has_room_for_what_it_makes(inputs: Path, monkeypatch: pytest.MonkeyPatch):
    worker = ToyWorker(job(inputs), threading.Event(), lambda: None)
    worker.inputs.folder = None  # as a store has none
    work = ChunkWork(tuple(find_inputs(worker.inputs, worker.out)), {})
    monkeypatch.setattr(fleet_worker, "disk_usage", lambda _: usage(10, 5, 5))
    worker._at_work = True
    with pytest.raises(OutputError, match="6 bytes are not free"):
        worker.stage(work)
    worker._at_work = False
    assert worker(work).states == {NAME: "done"}


def test_who_has_fetched_what_is_replaced_then_is_no_stranger(inputs: Path):
    """Of two workers with one chunk one was too late for it; what the other made stays ours."""
    workers = [ToyWorker(job(inputs), threading.Event(), lambda: None) for _ in range(2)]
    for each in workers:
        each.inputs.folder = None  # as a store has none
    work = ChunkWork(tuple(find_inputs(workers[0].inputs, workers[0].out)), {})
    staged = workers[0].stage(work)
    (inputs / NAME).write_bytes(b"another")
    assert workers[1](work).states == {NAME: "failed"}
    assert workers[0](staged).states == {NAME: "done"}
    assert read_receipts(workers[0].out)[NAME].receipt.state == "done"
    assert round_of(inputs).state == "done"
    assert (inputs.parent / "out" / NAME).read_bytes() == b"rehtona"
