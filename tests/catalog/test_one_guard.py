"""Whatever goes wrong with one file, in any stage, is that file's outcome; the others migrate."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from small_adapters import write
from toy_pair import make_files

from prolora_jax.catalog import run as run_module
from prolora_jax.catalog import scan as scan_module
from prolora_jax.catalog.catalog import CatalogJob, catalog_status, run_catalog, scan_catalog
from prolora_jax.cli.main import run
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration import many as many_module
from prolora_jax.migration.files import Writing
from prolora_jax.migration.pair import BasePair

FAILURES = [MemoryError(), RecursionError("deep"), OSError(5, "broken disk"), KeyError("x")]
FEW = ("to_q",)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory):
    return make_files(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def pair(toys, tmp_path_factory: pytest.TempPathFactory) -> BasePair:
    store = FolderStore(tmp_path_factory.mktemp("store"))
    return BasePair(load_base_model(toys.source), load_base_model(toys.target), store)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "catalog"
    place.mkdir()
    for n, name in enumerate("abc"):
        write(place / f"{name}.safetensors", n, (4,), FEW)
    return place


def failing_for_b(real: Callable[..., Any], failure: Exception) -> Callable[..., Any]:
    def instead(*args: Any, **kwargs: Any) -> Any:
        if any("b.safetensors" in str(a) for a in (*args, *kwargs.values())):
            raise failure
        return real(*args, **kwargs)

    return instead


@pytest.mark.parametrize("failure", FAILURES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (scan_module, "stamp"),
        (scan_module, "license_problem"),
        (scan_module, "unfit_output"),
        (many_module, "read_fitted"),
        (many_module, "write_migrated"),
    ],
    ids=["scan", "licence", "output", "read", "write"],
)
def test_a_failure_in_a_stage_is_one_file_s(folder, pair, monkeypatch, module, name, failure):
    monkeypatch.setattr(module, name, failing_for_b(getattr(module, name), failure))
    job = CatalogJob((folder,), folder.parent / "out", writing=Writing())
    run_catalog(job, pair)
    told = {r.input: (r.state, r.reason) for r in catalog_status(job.out)[1]}
    code = "missing-file" if isinstance(failure, OSError) else "internal-error"
    assert told["a.safetensors"] == told["c.safetensors"] == ("migrated", None)
    assert told["b.safetensors"] == ("failed" if code == "missing-file" else "refused", code)


def test_a_failure_of_energies_is_one_file_s(folder, pair, monkeypatch):
    real = scan_module.load_adapter
    monkeypatch.setattr(scan_module, "load_adapter", failing_for_b(real, MemoryError()))
    found = scan_catalog(CatalogJob((folder,), folder.parent / "out"), pair)
    assert [r.reason for r in found] == [None, "internal-error", None]


def test_a_failure_of_sidecars_is_one_file_s_flag(folder, pair, monkeypatch):
    carry = failing_for_b(run_module.carry, RecursionError("deep"))
    monkeypatch.setattr(run_module, "carry", carry)
    for name in "abc":
        (folder / f"{name}.txt").write_text("a style")
    job = CatalogJob((folder,), folder.parent / "out", writing=Writing(sidecars=True))
    run_catalog(job, pair)
    records = catalog_status(job.out)[1]
    assert {r.state for r in records} == {"migrated"}
    flagged = [r.input for r in records if any("internal error" in flag for flag in r.flags)]
    assert flagged == ["b.safetensors"]
    assert (job.out / "c.txt").read_text() == "a style"


def test_a_catalog_of_hostile_files_ends_and_lists_each(folder, toys, monkeypatch, tmp_path):
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "store"))
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    write(folder / "long.safetensors", 7, (4,), FEW)
    (folder / "long.safetensors").rename(folder / f"{'n' * 240}.safetensors")
    bomb = "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1}]\n" for i in range(1, 40))
    (folder / "a.yaml").write_text(bomb)
    deep = folder / "deep"
    deep.mkdir()
    write(deep / "adapter_model.safetensors", 8, (4,), FEW)
    (deep / "adapter_config.json").write_text('{"a":' * 900 + "1" + "}" * 900)
    out = tmp_path / "out"
    bases = ("--source", str(toys.source), "--target", str(toys.target))
    assert run(["migrate", str(folder), *bases, "--out", str(out), "-q"]) == 1
    told = {r.input: r.state for r in catalog_status(out)[1]}
    good = {"a.safetensors", "b.safetensors", "c.safetensors"}
    assert {name for name, state in told.items() if state == "migrated"} == good
    bad = {"pipe.safetensors", "loop.safetensors", f"{'n' * 240}.safetensors", "deep"}
    assert set(told) - good == bad


@pytest.mark.parametrize("of", ["adapter", "source", "target"])
def test_overwrite_never_replaces_what_is_read(toys, of):
    place = getattr(toys, of)
    file = place if place.is_file() else next(place.rglob("*.safetensors"))
    before = file.read_bytes()
    bases = ("--source", str(toys.source), "--target", str(toys.target))
    arguments = ["migrate", str(toys.adapter), *bases, "--out", str(file), "--overwrite", "-q"]
    assert run(arguments) == 2
    assert file.read_bytes() == before


@pytest.mark.parametrize(("name", "value"), [("source", None), ("seconds", '"long"')])
def test_a_manifest_with_a_fact_gone_or_odd_is_no_manifest(folder, pair, name, value):
    job = CatalogJob((folder,), folder.parent / "out", writing=Writing())
    run_catalog(job, pair)
    with closing(sqlite3.connect(job.out / "manifest.sqlite")) as database, database:
        if value is None:
            database.execute("DELETE FROM facts WHERE name = ?", (name,))
        else:
            database.execute("UPDATE facts SET value = ? WHERE name = ?", (value, name))
    with pytest.raises(UsageError, match=r"cannot be read as a manifest \(.*; remove it") as caught:
        catalog_status(job.out)
    assert caught.value.code is Refusal.BAD_REPORT


def test_an_output_that_vanishes_before_it_is_noted_is_one_file_s(folder, pair, monkeypatch):
    real = run_module.stamp

    def vanishing(path: Path) -> Any:
        if path == folder.parent / "out" / "b.safetensors":
            path.unlink()
        return real(path)

    monkeypatch.setattr(run_module, "stamp", vanishing)
    job = CatalogJob((folder,), folder.parent / "out", writing=Writing())
    run_catalog(job, pair)
    told = {r.input: r for r in catalog_status(job.out)[1]}
    assert [r.state for r in told.values()] == ["migrated", "failed", "migrated"]
    assert told["b.safetensors"].reason == Refusal.CANNOT_WRITE
    assert "was written and cannot be read now (No such file" in str(told["b.safetensors"].message)
    monkeypatch.undo()
    run_catalog(CatalogJob((folder,), job.out, writing=Writing(), retry=True), pair)
    assert {r.state for r in catalog_status(job.out)[1]} == {"migrated"}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("name", ["file_hash", "read_any_report"], ids=["stamping", "plan"])
def test_a_failure_of_bookkeeping_is_one_file_s(folder, pair, monkeypatch, name, failure):
    job = CatalogJob((folder,), folder.parent / "out", writing=Writing())
    if name == "read_any_report":
        run_catalog(job, pair)  # a second run looks at what the first has made
    monkeypatch.setattr(run_module, name, failing_for_b(getattr(run_module, name), failure))
    run_catalog(job, pair)
    told = {r.input: r.state for r in catalog_status(job.out)[1]}
    assert told["a.safetensors"] == told["c.safetensors"] == "migrated"
    made_again = name == "read_any_report" and isinstance(failure, OSError)
    assert (told["b.safetensors"] == "migrated") == made_again


@pytest.mark.parametrize("failure", FAILURES, ids=lambda e: type(e).__name__)
def test_a_failure_of_a_duplicate_s_copy_is_one_file_s(folder, pair, monkeypatch, failure):
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    copy = failing_for_b(run_module.copy_output, failure)
    monkeypatch.setattr(run_module, "copy_output", copy)
    job = CatalogJob((folder,), folder.parent / "out", writing=Writing())
    run_catalog(job, pair)
    told = {r.input: r.state for r in catalog_status(job.out)[1]}
    assert told["a.safetensors"] == told["c.safetensors"] == "migrated"
    assert told["b.safetensors"] in ("failed", "refused")
