"""A catalog of mixed files: every one accounted for, only what is unfinished is done again."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_adapters import write
from toy_pair import ToyFiles, make_files

from prolora_jax.catalog import run as catalog_module
from prolora_jax.catalog.catalog import CatalogJob, run_catalog, scan_catalog
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.outputs.lock import locked
from prolora_jax.io.outputs.manifest import SAID, Manifest
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration import many as bulk
from prolora_jax.migration.files import Writing
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def pair(toys: ToyFiles, tmp_path_factory: pytest.TempPathFactory) -> BasePair:
    store = FolderStore(tmp_path_factory.mktemp("store"))
    return BasePair(load_base_model(toys.source), load_base_model(toys.target), store)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three adapters, one of them twice, a broken one, an archive, a link that leads back."""
    place = tmp_path / "catalog"
    (place / "styles" / "old").mkdir(parents=True)
    write(place / "a.safetensors", 1, (4,))
    write(place / "styles" / "b é.safetensors", 2, (8,))
    write(place / "styles" / "old" / "c.safetensors", 3, (4,))
    (place / "styles" / "a again.safetensors").write_bytes((place / "a.safetensors").read_bytes())
    (place / "broken.safetensors").write_bytes(b"not a file")
    (place / "many.zip").write_bytes(b"PK")
    (place / "styles" / "loop").symlink_to(place)
    return place


def job(folder: Path, **changes) -> CatalogJob:
    out = folder.parent / "out"
    return CatalogJob((folder,), out, MigrationOptions(), Writing(), **changes)


def outputs(out: Path) -> dict[str, bytes]:
    files = (p for p in out.rglob("*.safetensors") if p.is_file())
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in files}


def states(out: Path) -> dict[str, str]:
    with Manifest(out) as manifest:
        return {record.input: record.state for record in manifest.records()}


def noted_runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the files that each run from now on migrates, a list a run."""
    done: list[list[str]] = []
    real = catalog_module.migrate_files

    def spied(jobs, *args):
        done.append(sorted(j.source.name for j in jobs))
        return real(jobs, *args)

    monkeypatch.setattr(catalog_module, "migrate_files", spied)
    return done


def test_every_file_is_accounted_for(folder: Path, pair: BasePair):
    summary = run_catalog(job(folder), pair)
    out = folder.parent / "out"
    assert states(out) == {
        "a.safetensors": "migrated",
        "styles/a again.safetensors": "duplicate",
        "styles/b é.safetensors": "migrated",
        "styles/old/c.safetensors": "migrated",
        "broken.safetensors": "refused",
        "many.zip": "refused",
    }
    assert summary.by_state == {"migrated": 3, "refused": 2, "duplicate": 1}
    assert summary.files == 6
    assert summary.finished is not None
    found = outputs(out)
    assert found["a.safetensors"] == found["styles/a again.safetensors"]
    assert len(found) == 4
    with Manifest(out) as manifest:
        record = next(r for r in manifest.records() if r.input == "a.safetensors")
    assert record.energy_in is not None
    assert record.energy_moved is not None
    assert 0 < record.energy_moved <= record.energy_in
    assert record.modules == record.moved + sum(record.skipped.values())


def test_equal_numbers_under_unlike_headers_are_two_adapters(folder: Path, pair: BasePair):
    tensors, again = load_file(folder / "a.safetensors"), folder / "styles/a again.safetensors"
    save_file(tensors, again, {"modelspec.trigger_phrase": "in ink"})
    run_catalog(job(folder), pair)
    assert states(folder.parent / "out")["styles/a again.safetensors"] == "migrated"
    written = {}
    for name in ("a.safetensors", "styles/a again.safetensors"):
        with safe_open(folder.parent / "out" / name, "np") as file:
            written[name] = file.metadata().get("modelspec.trigger_phrase")
    assert written == {"a.safetensors": None, "styles/a again.safetensors": "in ink"}


def test_a_header_that_was_edited_is_written_anew_and_no_other_file(
    folder: Path, pair: BasePair, monkeypatch: pytest.MonkeyPatch
):
    out, said = folder.parent / "out", "modelspec.trigger_phrase"
    (folder / "styles/old/c.safetensors").rename(folder / f"styles/old/c{SAID}d.safetensors")
    run_catalog(job(folder), pair)
    with Manifest(out, write=True) as manifest:  # as a fleet leaves it
        for row in list(manifest.entries()):
            stamp = (row.proof.input_stamp or "").rpartition(SAID)[0]
            manifest.put(row._replace(proof=row.proof._replace(input_stamp=stamp)))
    done = noted_runs(monkeypatch)
    run_catalog(job(folder), pair)
    edited = folder / "a.safetensors"
    for words in ("in ink", "in oil"):
        times = edited.stat()
        save_file(load_file(edited), edited, {said: words})
        os.utime(edited, ns=(times.st_atime_ns, times.st_mtime_ns))
        run_catalog(job(folder), pair)
        with safe_open(out / "a.safetensors", "np") as file:
            assert file.metadata()[said] == words
    # The one that had the same content is a file of its own now.
    assert done == [[], ["a again.safetensors", "a.safetensors"], ["a.safetensors"]]
    assert states(out)["styles/a again.safetensors"] == "migrated"


def test_scan_says_before_what_the_run_finds(folder: Path, pair: BasePair):
    before = {r.input: r for r in scan_catalog(job(folder), pair)}
    assert not (folder.parent / "out").exists()
    run_catalog(job(folder), pair)
    with Manifest(folder.parent / "out") as manifest:
        for after in manifest.records():
            told = before[after.input]
            for name in ("verdict", "modules", "moved", "skipped", "reason"):
                assert getattr(told, name) == getattr(after, name), name
            if after.size_out:
                assert told.size_out == pytest.approx(after.size_out, rel=0.2)


def test_only_what_is_unfinished_is_done_again(
    folder: Path, pair: BasePair, monkeypatch: pytest.MonkeyPatch
):
    out, done = folder.parent / "out", noted_runs(monkeypatch)
    run_catalog(job(folder), pair)
    first = outputs(out)
    run_catalog(job(folder), pair)
    os.utime(folder / "a.safetensors")  # touched, not changed
    run_catalog(job(folder), pair)
    assert done[1:] == [[], []]
    (out / "styles" / "b é.safetensors").write_bytes(b"torn")
    (folder / "styles" / "old" / "c.safetensors").unlink()
    write(folder / "styles" / "old" / "c.safetensors", 9, (4,))
    run_catalog(job(folder), pair)
    assert done[3] == ["b é.safetensors", "c.safetensors"]
    again = outputs(out)
    assert {name for name in first if first[name] != again[name]} == {"styles/old/c.safetensors"}


def test_other_options_redo_everything(folder: Path, pair: BasePair):
    run_catalog(job(folder), pair)
    out = folder.parent / "out"
    first = outputs(out)
    changed = CatalogJob((folder,), out, MigrationOptions(scale=0.5), Writing())
    run_catalog(changed, pair)
    assert all(first[name] != content for name, content in outputs(out).items())


def test_outputs_of_others_are_not_replaced(folder: Path, pair: BasePair):
    out = folder.parent / "out"
    out.mkdir()
    (out / "a.safetensors").write_bytes(b"somebody's")
    for _ in range(2):  # nor by the next run, which knows the record of the first
        run_catalog(job(folder), pair)
        assert (out / "a.safetensors").read_bytes() == b"somebody's"
        with Manifest(out) as manifest:
            reasons = {r.input: r.reason for r in manifest.records() if r.state == "failed"}
        assert reasons == dict.fromkeys(
            ("a.safetensors", "styles/a again.safetensors"), str(Refusal.OUTPUT_EXISTS)
        )
    run_catalog(replace(job(folder), writing=Writing(overwrite=True)), pair)
    assert (out / "a.safetensors").read_bytes() != b"somebody's"


def test_a_run_that_stops_at_a_refusal_leaves_the_rest_planned(
    folder: Path, pair: BasePair, monkeypatch: pytest.MonkeyPatch
):
    bad = folder / "0 bad.safetensors"
    write(bad, 4, (4,))
    content = bytearray(bad.read_bytes())
    content[-200:] = b"\xff" * 200  # NaN: its header is fine
    bad.write_bytes(content)
    old = folder / "styles" / "old"
    (old / "d.safetensors").write_bytes((old / "c.safetensors").read_bytes())
    monkeypatch.setattr(bulk, "BATCH_ROWS", 1)  # a batch for each file
    summary = run_catalog(job(folder, fail_fast=True), pair)
    counts = {"planned": 3, "refused": 3, "migrated": 1, "duplicate": 1}
    assert summary.by_state == counts
    with Manifest(folder.parent / "out") as manifest:
        assert all(r.message for r in manifest.records() if r.state == "refused")
    assert run_catalog(job(folder), pair).by_state == {"migrated": 3, "refused": 3, "duplicate": 2}


def test_a_dry_run_tells_shares_duplicates_and_bad_numbers(folder: Path, pair: BasePair):
    bad = folder / "bad.safetensors"
    write(bad, 4, (4,))
    content = bytearray(bad.read_bytes())
    content[-200:] = b"\xff" * 200
    bad.write_bytes(content)
    quick = {r.input: r for r in scan_catalog(job(folder), pair, headers_only=True)}
    assert quick["bad.safetensors"].verdict != "refused"
    assert quick["a.safetensors"].energy_in is None
    found = {r.input: r for r in scan_catalog(job(folder), pair)}
    assert found["bad.safetensors"].reason == str(Refusal.NON_FINITE)
    assert found["styles/a again.safetensors"].duplicate_of == "a.safetensors"
    run_catalog(job(folder), pair)
    with Manifest(folder.parent / "out") as manifest:
        for record in manifest.records():
            told = found[record.input]
            assert told.energy_in == pytest.approx(record.energy_in)
            assert told.energy_moved == pytest.approx(record.energy_moved)


def test_an_empty_catalog_makes_no_folder(tmp_path: Path, pair: BasePair):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no adapter"):
        run_catalog(job(tmp_path / "empty"), pair)
    assert not (tmp_path / "out").exists()


def test_one_run_at_a_time(folder: Path, pair: BasePair):
    with locked(folder.parent / "out"), pytest.raises(UsageError, match="another run writes"):
        run_catalog(job(folder), pair)


KILLED = """
import os, sys, threading
from pathlib import Path
from prolora_jax.migration.files import Writing
from prolora_jax.catalog.catalog import CatalogJob, run_catalog
from prolora_jax.io.outputs import manifest
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.migration.pair import BasePair
source, target, store, folder, out, last = sys.argv[1:]
put, seen = manifest.Manifest.put, [0]
def counted(self, *entries):
    if seen[0] == int(last):
        os.kill(os.getpid(), 9)
    seen[0] += 1
    put(self, *entries)
manifest.Manifest.put = counted
pair = BasePair(load_base_model(source), load_base_model(target), FolderStore(Path(store)))
run_catalog(CatalogJob((Path(folder),), Path(out), MigrationOptions(), Writing()), pair)
"""


@pytest.mark.parametrize("last", [1, 2])
def test_a_killed_run_goes_on_where_it_was(
    folder: Path, toys: ToyFiles, pair: BasePair, tmp_path: Path, last: int
):
    whole = CatalogJob((folder,), tmp_path / "whole", MigrationOptions(), Writing())
    run_catalog(whole, pair)
    out = tmp_path / "out"
    assert isinstance(pair.store, FolderStore)
    paths = (toys.source, toys.target, pair.store.folder, folder, out, last)
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, paths)], check=False)
    assert killed.returncode == -9
    assert Counter(states(out).values())["planned"] == 5 - last
    run_catalog(job(folder), pair)
    assert outputs(out) == outputs(tmp_path / "whole")
    assert states(out) == states(tmp_path / "whole")
    assert not [p for p in out.rglob(".*") if p.name != ".lock"]
    assert np.all([len(content) > 100 for content in outputs(out).values()])
