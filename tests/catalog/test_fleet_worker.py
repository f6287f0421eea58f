"""A worker of a fleet, with the engine: outputs are those of one machine, bit for bit, wherever
inputs and outputs lie; and what two workers, killed ones and lost answers leave is whole."""

import json
import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from seaweed import BUCKET, proxied, use
from small_adapters import write
from stored import key_of, operators_of
from toy_pair import ToyFiles, make_files

from prolora_jax.catalog.catalog import run_catalog
from prolora_jax.catalog.fleet import receipts
from prolora_jax.catalog.fleet.chunk import ChunkDone, ChunkWork
from prolora_jax.catalog.fleet.ending import end_run, summary_of_receipts
from prolora_jax.catalog.fleet.inputs import FleetInput, find_inputs, units_of
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.worker import Worker
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.catalog.verify import verify_catalog
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.places import store_place
from prolora_jax.io.places.local import LocalPlace
from prolora_jax.io.places.opening import open_place
from prolora_jax.io.places.place import FilePlace
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.files import Writing
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.options import MigrationOptions

NOT_OUTPUTS = ("manifest.sqlite", ".lock", ".prolora/")


@dataclass(frozen=True)
class Made:
    """A catalog, and what one machine makes of it."""

    toys: ToyFiles
    inputs: Path
    store: Path
    outputs: dict[str, bytes]

    def job(self, inputs: object, out: object, **changes) -> FleetJob:
        bases = str(self.toys.source), str(self.toys.target)
        return FleetJob(str(inputs), str(out), *bases, store=self.store, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Files of several kinds: folders of peft's, sidecars, one that forbids, broken ones, twins."""
    place = tmp_path_factory.mktemp("made")
    toys, inputs = make_files(place / "toys"), place / "catalog"
    (inputs / "styles" / "old").mkdir(parents=True)
    for seed in range(4):
        write(inputs / f"a{seed}.safetensors", seed, (4,))
    write(inputs / "styles" / "b é.safetensors", 12, (8,))
    write(inputs / "styles" / "peft", 13, (4,), format="peft")
    shutil.copy(inputs / "a1.safetensors", inputs / "styles" / "twin.safetensors")
    write(inputs / "styles" / "old" / "forbidden.safetensors", 14, (4,))
    (inputs / "styles" / "old" / "forbidden.json").write_text('{"allowDerivatives": false}')
    (inputs / "a2.civitai.info").write_text('{"name": "a2"}')
    (inputs / "a2.preview.png").write_bytes(b"a picture")
    (inputs / "broken.safetensors").write_bytes(b"not a file")
    (inputs / "styles" / "optimizer.pt").write_bytes(b"state")
    (inputs / "many.zip").write_bytes(b"PK")
    store = place / "store"
    pair = open_pair(toys.source, toys.target, FolderStore(store))
    out = place / "one"
    run_catalog(CatalogJob((inputs,), out, MigrationOptions(), Writing(sidecars=True)), pair)
    return Made(toys, inputs, store, contents(LocalPlace(out)))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with proxied(tmp_path_factory.mktemp("seaweed")) as found:
        yield found


@pytest.fixture
def bucket(
    proxy: FaultProxy, made: Made, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A prefix of its own on a real S3 server, with the catalog in it."""
    proxy.choose = lambda method, path: None
    use(proxy.endpoint, monkeypatch)
    url = f"s3://{BUCKET}/{request.node.name}"
    upload(made.inputs, open_place(f"{url}/catalog"))
    return url


def upload(folder: Path, place: FilePlace) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            place.create(path.relative_to(folder).as_posix(), path, {})


def contents(place: FilePlace) -> dict[str, bytes]:
    """Every file that users see."""
    return {
        one.key: place.read_range(one.key, 0, one.size)
        for one in place.list()
        if not one.key.startswith(NOT_OUTPUTS)
    }


def worker(job: FleetJob) -> Worker:
    return Worker(job, threading.Event(), lambda: None)


def work_of(job: FleetJob) -> ChunkWork:
    """All of a catalog as one chunk."""
    out = open_place(job.out)
    known = receipts.read_receipts(out)
    found = find_inputs(open_place(job.inputs), out, previews=job.writing.sidecars)
    inputs = [one for unit in units_of(found) for one in unit]
    left = [o for o in inputs if o.name not in known or not known[o.name].receipt.settles(o)]
    return ChunkWork(tuple(left), {o.name: known[o.name] for o in left if o.name in known})


def run(job: FleetJob) -> ChunkDone:
    return worker(job)(work_of(job))


def end(job: FleetJob) -> None:
    end_run(open_place(job.out))


def without_places(files: dict[str, bytes]) -> dict[str, object]:
    """Files, and of reports what they say beside where inputs and base models are."""
    found: dict[str, object] = dict(files)
    for name, content in files.items():
        if name.endswith(".report.json"):
            told = json.loads(content)
            for party in ("input", "source", "target"):
                at = told.get(party)
                if isinstance(at, dict):
                    at["location"] = Path(at["location"]).name
            found[name] = told
    return found


def test_outputs_are_those_of_one_machine(made: Made, tmp_path: Path):
    """In a folder: every byte, reports and sidecars too, and the views of one machine after it."""
    job = made.job(made.inputs, tmp_path / "out", writing=Writing(sidecars=True))
    states = run(job).states
    assert states["styles/peft"] == "done"
    assert states["styles/optimizer.pt"] == "done"  # which needs no output
    assert {name for name, state in states.items() if state == "refused"} == {
        "broken.safetensors",
        "many.zip",
        "styles/old/forbidden.safetensors",
    }
    end(job)
    out = LocalPlace(tmp_path / "out")
    assert contents(out) == made.outputs
    check = verify_catalog(tmp_path / "out", None)
    assert check.problems == {}
    assert check.recomputed == 6
    summary, records = summary_of_receipts(out)
    assert summary.by_state == {"migrated": 6, "refused": 3, "duplicate": 1, "ignored": 1}
    assert {r.input for r in records} == {*states}


def test_a_host_computes_nothing_that_the_shared_store_has(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A store that was copied to a place serves every host, whose own folder has other things.

    They are over its limit, and go after the first chunk: it may be the last one of its host.
    """
    shutil.copytree(made.store, tmp_path / "shared")
    FolderStore(tmp_path / "own").operators.put(key_of(), operators_of())
    for name in ("subspaces.on_host.compute_one", "migration.pair_work.prepare"):
        monkeypatch.setattr(f"prolora_jax.{name}", None)
    job = made.job(made.inputs, tmp_path / "out", writing=Writing(sidecars=True))
    job = replace(job, store=tmp_path / "own", shared=tmp_path / "shared")
    job = replace(job, share=(1, 2), limit=1)
    run(job)
    end(job)
    assert contents(LocalPlace(tmp_path / "out")) == made.outputs
    own = {p.name: p.read_bytes() for p in (tmp_path / "own" / "operators").glob("*.safetensors")}
    assert own
    theirs = made.store / "operators"
    assert all((theirs / name).read_bytes() == content for name, content in own.items())


def test_a_bucket_gets_what_a_folder_gets(made: Made, bucket: str):
    """Inputs, base models and outputs in a store: reports name URLs, and nothing of this host."""
    job = made.job(f"{bucket}/catalog", f"{bucket}/out", writing=Writing(sidecars=True))
    upload(made.toys.source, open_place(f"{bucket}/sdxl-like"))
    upload(made.toys.target, open_place(f"{bucket}/ssd-1b-like"))
    bases = (f"{bucket}/sdxl-like", f"{bucket}/ssd-1b-like")
    job = FleetJob(job.inputs, job.out, *bases, writing=job.writing, store=made.store)
    run(job)
    end(job)
    found = contents(open_place(job.out))
    pair = json.loads(found.pop("pair.report.json"))
    assert (pair["source"], pair["target"]) == bases
    expected = without_places(made.outputs)
    expected.pop("pair.report.json")
    assert without_places(found) == expected
    for name in found:
        if name.endswith(".report.json"):
            report = json.loads(found[name])
            told = [report[party]["location"] for party in ("source", "target", "input")]
            assert all(location.startswith(f"{bucket}/") for location in told)
    everything = b"".join(open_place(bucket).read_range(o.key, 0, o.size) for o in listed(bucket))
    assert b"/prolora-" not in everything
    assert str(made.store.parent).encode() not in everything


def listed(url: str):
    return [one for one in open_place(url).list("out") if not one.key.endswith(".safetensors")]


def test_two_workers_over_one_list(made: Made, bucket: str):
    """Both do all of it: every output is there once, and a later worker changes nothing."""
    job = made.job(f"{bucket}/catalog", f"{bucket}/out")
    out, work = open_place(job.out), work_of(job)
    first = worker(job)(work)
    before = {one.key: one.etag for one in out.list() if not one.key.endswith("ended.json")}
    tags = {key: out.head(key) for key in before}
    assert worker(job)(work).states == first.states
    assert {one.key: one.etag for one in out.list()} == before
    assert {key: out.head(key) for key in before} == tags  # of whose attempt it is, too


def test_what_a_killed_worker_has_left_is_adopted(made: Made, tmp_path: Path):
    """Killed between an output and its report, or between that and the receipt."""
    job = made.job(made.inputs, tmp_path / "out")
    run(job)
    out = LocalPlace(tmp_path / "out")
    whole = {one.key: one.etag for one in out.list()}
    for name in ("a0.safetensors", "a1.safetensors"):
        (tmp_path / "out" / receipts.key_of(name)).unlink()
    (tmp_path / "out" / "a1.safetensors.report.json").unlink()
    assert {*run(job).states} == {"a0.safetensors", "a1.safetensors"}
    again = {one.key: one.etag for one in out.list()}
    assert {key for key in whole if whole[key] != again.get(key)} == {
        receipts.key_of("a0.safetensors"),
        receipts.key_of("a1.safetensors"),
        "a1.safetensors.report.json",
    }


@pytest.mark.parametrize("lost", ["lose", 409])
def test_lost_answers_change_nothing(made: Made, bucket: str, proxy: FaultProxy, lost):
    """A third of all writes has no answer, or another than it should have."""
    chance = random.Random(3)
    job = made.job(f"{bucket}/catalog", f"{bucket}/out")
    ready, work = worker(job), work_of(job)
    proxy.choose = lambda method, path: lost if method == "PUT" and chance.random() < 0.3 else None
    states = ready(work).states
    proxy.choose = lambda method, path: None
    assert run(job).states == {}
    assert states["a0.safetensors"] == "done"
    adapters = {n: c for n, c in made.outputs.items() if n.endswith("adapter_model.safetensors")}
    found = contents(open_place(job.out))
    assert adapters.items() <= found.items()
    assert {n for n in found if n.endswith(".safetensors")} == {
        n for n in made.outputs if n.endswith(".safetensors")
    }


def test_a_name_that_a_store_cannot_hold_is_that_files_refusal(
    made: Made, bucket: str, tmp_path: Path
):
    inputs = tmp_path / "catalog"
    inputs.mkdir()
    for name in ("a0", "line\nbreak"):
        shutil.copy(made.inputs / "a0.safetensors", inputs / f"{name}.safetensors")
    job = made.job(inputs, f"{bucket}/out")
    assert run(job).states == {"a0.safetensors": "done", "line\nbreak.safetensors": "refused"}
    record = receipts.read_receipts(open_place(job.out))["line\nbreak.safetensors"].receipt.record
    assert record.reason == str(Refusal.BAD_NAME)


def test_an_output_whose_report_has_no_place_is_not_left_there(
    made: Made, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    inputs, name = tmp_path / "catalog", f"{'long' * 25}.safetensors"
    inputs.mkdir()
    for one in ("a0.safetensors", name):
        shutil.copy(made.inputs / "a0.safetensors", inputs / one)
    job = made.job(inputs, f"{bucket}/out")
    output = f"{bucket}/out/{name}".removeprefix(f"s3://{BUCKET}/")
    monkeypatch.setattr(store_place, "_LONGEST_KEY", len(output))
    assert run(job).states == {"a0.safetensors": "done", name: "refused"}
    assert open_place(job.out).head(name) is None


def test_an_output_too_large_for_a_store_is_that_files_refusal(
    made: Made, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    inputs = tmp_path / "catalog"
    inputs.mkdir()
    write(inputs / "small.safetensors", 0, (4,))
    write(inputs / "large.safetensors", 1, (16,))
    job = made.job(inputs, f"{bucket}/out")
    monkeypatch.setattr(store_place, "_LARGEST_PUT", 200_000)  # they have 98 and 305 thousand
    assert run(job).states == {"small.safetensors": "done", "large.safetensors": "refused"}
    record = receipts.read_receipts(open_place(job.out))["large.safetensors"].receipt.record
    assert record.reason == str(Refusal.FILE_TOO_LARGE)


def test_an_input_that_is_replaced_meanwhile_is_done_by_the_next_run(made: Made, bucket: str):
    job = made.job(f"{bucket}/catalog", f"{bucket}/out")
    inputs, out, ready = open_place(job.inputs), open_place(job.out), worker(job)
    work = work_of(job)
    changed = next(one for one in work.inputs if one.name == "a3.safetensors")
    inputs.replace_if(changed.name, made.inputs / "styles" / "b é.safetensors", changed.etag, {})
    assert ready(work).states[changed.name] == "failed"
    record = receipts.read_receipts(out)[changed.name].receipt.record
    assert record.reason == str(Refusal.CHANGED)
    assert (record.message or "").startswith(f"{job.inputs}/a3.safetensors: ")
    assert out.head("a3.safetensors") is None
    assert ready(work_of(job)).states == {changed.name: "done"}
    first = contents(out)["a3.safetensors"]
    assert first == made.outputs["styles/b é.safetensors"]
    # And once more, when it has an output: that one is replaced, and nobody else's would be.
    now = next(one for one in inputs.list() if one.key == changed.name)
    inputs.replace_if(now.key, made.inputs / "a0.safetensors", now.etag, {})
    assert ready(work_of(job)).states == {changed.name: "done"}
    assert contents(out)["a3.safetensors"] == made.outputs["a0.safetensors"]
    assert receipts.read_receipts(out)[changed.name].receipt.round == 2


def test_receipts_of_a_chunk_and_of_a_table(made: Made, tmp_path: Path):
    """Together they say what single ones say; a table is read instead of them."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (`fleet`)")
    single = made.job(made.inputs, tmp_path / "single")
    together = made.job(made.inputs, tmp_path / "together")
    run(single)
    work = work_of(together)
    worker(together)(work._replace(together=True))
    places = LocalPlace(tmp_path / "single"), LocalPlace(tmp_path / "together")
    assert [len([*place.list(receipts.FOLDER)]) for place in places] == [11, 1]
    told = [
        {n: k.receipt.record.output_hash for n, k in receipts.read_receipts(place).items()}
        for place in places
    ]
    assert told[0] == told[1]
    known = receipts.read_receipts(places[1])
    assert receipts.compact(places[1]) == 11
    (table,) = (tmp_path / "together" / receipts.TABLES).iterdir()
    rows = parquet.read_table(table).to_pylist()
    assert {row["input"]: row["output_hash"] for row in rows} == told[1]
    assert receipts.read_receipts(places[1]) == known
    # A receipt that is newer than the table holds.
    a0 = next(one for one in work.inputs if one.name == "a0.safetensors")
    worker(together)(ChunkWork((FleetInput(a0.name, "newer", a0.size, a0.item),), known))
    now = receipts.read_receipts(places[1])["a0.safetensors"].receipt
    assert (now.etag, now.round) == ("newer", 1)
    assert run(single).states == {}


def test_other_bases_are_another_job(made: Made, tmp_path: Path):
    job = made.job(made.inputs, tmp_path / "out")
    worker(job)
    other = FleetJob(job.inputs, job.out, job.target, job.target, store=made.store)
    with pytest.raises(UsageError, match="other base models") as refused:
        worker(other)
    assert refused.value.code is Refusal.LOCKED


def test_a_hurried_worker_ends_with_whole_files(made: Made, tmp_path: Path):
    job, hurried = made.job(made.inputs, tmp_path / "out"), threading.Event()
    begun: list[ChunkWork] = []
    ready = Worker(job, hurried, lambda: hurried.set() if begun else None)
    begun.append(work_of(job))
    done = ready(begun[0])
    assert done.left
    assert ready(begun[0]) == ChunkDone({}, tuple(one.name for one in begun[0].inputs))
    assert done.trouble is None
    assert not {*done.left} & {*done.states}
    end(job)
    assert {n for n, s in done.states.items() if s == "done"} >= {"styles/optimizer.pt"}
    assert run(job).states.keys() == {*done.left}
    found = contents(LocalPlace(tmp_path / "out"))
    assert found["a0.safetensors"] == made.outputs["a0.safetensors"]
