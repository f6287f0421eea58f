"""What goes wrong while a catalog is migrated is told; the rest goes on; the next run mends it."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from patience import UNTIL_HUNG
from small_adapters import write
from toy_pair import ToyFiles, make_files

from prolora_jax.catalog import run as catalog_module
from prolora_jax.catalog.catalog import CatalogJob, run_catalog
from prolora_jax.cli.console import progress_line
from prolora_jax.errors import OutputError, Refusal
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.outputs.manifest import Manifest
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.files import Writing
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions

FEW = ("to_q",)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def pair(toys: ToyFiles, store: Path) -> BasePair:
    bases = FolderStore(store)
    return BasePair(load_base_model(toys.source), load_base_model(toys.target), bases)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "catalog"
    (place / "styles").mkdir(parents=True)
    for n, name in enumerate(("a", "b", "styles/c")):
        write(place / f"{name}.safetensors", n, (4,), FEW)
    return place


def job(folder: Path, **changes) -> CatalogJob:
    return CatalogJob((folder,), folder.parent / "out", MigrationOptions(), Writing(), **changes)


def told(out: Path) -> dict[str, tuple[str, str | None]]:
    with Manifest(out) as manifest:
        return {r.input: (r.state, r.reason) for r in manifest.records()}


def after_scan(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something between the scan and the reading of the files."""
    real = catalog_module.migrate_files

    def late(*args):
        act()
        return real(*args)

    monkeypatch.setattr(catalog_module, "migrate_files", late)


def test_a_file_that_vanishes(folder: Path, pair: BasePair, monkeypatch: pytest.MonkeyPatch):
    content = (folder / "b.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        after_scan(patch, (folder / "b.safetensors").unlink)
        run_catalog(job(folder), pair)
    out = folder.parent / "out"
    assert told(out) == {
        "a.safetensors": ("migrated", None),
        "b.safetensors": ("failed", str(Refusal.MISSING_FILE)),
        "styles/c.safetensors": ("migrated", None),
    }
    run_catalog(job(folder), pair)
    assert "b.safetensors" not in told(out)
    (folder / "b.safetensors").write_bytes(content)
    run_catalog(job(folder), pair)
    assert told(out)["b.safetensors"] == ("migrated", None)


def test_a_file_that_changes(folder: Path, pair: BasePair, monkeypatch: pytest.MonkeyPatch):
    """It has other numbers than those that were scanned: what was read is what is recorded."""
    target = folder / "b.safetensors"

    def change() -> None:
        target.unlink()
        write(target, 77, (4,), FEW)

    with monkeypatch.context() as patch:
        after_scan(patch, change)
        run_catalog(job(folder), pair)
    out = folder.parent / "out"
    late = (out / "b.safetensors").read_bytes()
    shutil.rmtree(out)
    run_catalog(job(folder), pair)
    assert (out / "b.safetensors").read_bytes() == late

    with monkeypatch.context() as patch:  # and now it is torn while it is read
        change_size = target.stat().st_size // 2
        after_scan(patch, lambda: os.truncate(target, change_size))
        shutil.rmtree(out)
        run_catalog(job(folder), pair)
    assert told(out)["b.safetensors"][0] == "refused"
    assert told(out)["a.safetensors"] == ("migrated", None)


def test_a_place_that_cannot_be_written(folder: Path, pair: BasePair):
    """Also for root, whom no permission stops: a file stands where a folder has to be."""
    out = folder.parent / "out"
    out.mkdir()
    (out / "styles").write_text("in the way")
    run_catalog(job(folder), pair)
    assert told(out)["styles/c.safetensors"] == ("failed", str(Refusal.CANNOT_WRITE))
    assert told(out)["a.safetensors"] == ("migrated", None)
    (out / "styles").unlink()
    run_catalog(job(folder), pair)
    assert told(out)["styles/c.safetensors"][0] == "failed"  # it is tried again when asked to
    summary = run_catalog(job(folder, retry=True), pair)
    assert summary.by_state == {"migrated": 3}


LIMITED = (
    "import os, resource, sys\n"
    "size = int(sys.argv[1])\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


def command(folder: Path, toys: ToyFiles, store: Path, *more: str) -> list[str]:
    words = ["migrate", folder, "--source", toys.source, "--target", toys.target]
    words += ["--out", folder.parent / "out", "--store", store, *more]
    return [sys.executable, "-m", "prolora_jax", *map(str, words)]


def test_a_disk_that_takes_no_more_of_a_file(
    folder: Path, toys: ToyFiles, store: Path, pair: BasePair
):
    """The system refuses to make any file larger than a limit, as it does on a full disk."""
    write(folder / "large.safetensors", 5, (64,))
    run_catalog(job(folder), pair)  # bases and comparisons are there: only outputs are written
    out = folder.parent / "out"
    size = (out / "large.safetensors").stat().st_size
    shutil.rmtree(out)
    limited = [sys.executable, "-c", LIMITED, str(size * 2 // 3)]
    whole = limited + command(folder, toys, store, "-q")
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert told(out) == {
        "a.safetensors": ("migrated", None),
        "b.safetensors": ("migrated", None),
        "large.safetensors": ("failed", str(Refusal.CANNOT_WRITE)),
        "styles/c.safetensors": ("migrated", None),
    }
    assert not (out / "large.safetensors").exists()
    assert not [p for p in out.rglob(".*") if p.name != ".lock"]


def test_a_disk_that_takes_no_more_of_the_manifest(
    folder: Path, pair: BasePair, monkeypatch: pytest.MonkeyPatch
):
    real = Manifest.__init__

    def full(self: Manifest, out: Path, *, write: bool = False) -> None:
        real(self, out, write=write)
        if write:
            self._db.execute("PRAGMA max_page_count = 3")

    for n in range(40):
        (folder / f"{n}{'x' * 200}.zip").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "__init__", full)
        with pytest.raises(OutputError, match="manifest.sqlite: cannot be written"):
            run_catalog(job(folder), pair)
    assert run_catalog(job(folder), pair).by_state == {"refused": 40, "migrated": 3}


# A background job of a script starts with interrupts ignored, and so do its children (as under
# `nohup`, where the program has to go on): this one takes them as from a terminal.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from prolora_jax.cli.main import main
from prolora_jax.io.outputs.manifest import Manifest
put, sent = Manifest.put, []
def counted(self, *entries):
    put(self, *entries)
    if not sent and any(entry.record.state == "migrated" for entry in entries):
        sent.append(os.kill(os.getpid(), signal.SIGINT))
Manifest.put = counted
main(sys.argv[1:])
"""


def test_an_interrupt_ends_cleanly(folder: Path, toys: ToyFiles, store: Path, pair: BasePair):
    for n in range(40):
        write(folder / f"many {n}.safetensors", n, (64,))
    words = command(folder, toys, store, "-q")[3:]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=UNTIL_HUNG,
    )
    out = folder.parent / "out"
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert 0 < finished(out) < 43
    assert not [p for p in out.rglob(".*") if p.name != ".lock"]
    assert run_catalog(job(folder), pair).by_state == {"migrated": 43}


def finished(out: Path) -> int:
    try:
        uri = f"{(out / 'manifest.sqlite').resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=30)) as database:
            (count,) = database.execute(
                "SELECT count(*) FROM records WHERE state = 'migrated'"
            ).fetchone()
    except sqlite3.OperationalError:
        return 0
    return int(count)


def test_lines_for_logs_tell_rate_and_time_left():
    assert progress_line("files", 0, 9, 0, 3.0) == "files: 0 of 9"
    assert progress_line("files", 30, 90, 10, 4.0) == "files: 30 of 90, 5.0/s, 0:00:12 left"
    assert progress_line("files", 2, 9, 0, 8.0) == "files: 2 of 9, 4.0 s each, 0:00:28 left"


@pytest.mark.parametrize("damage", ["{", "[]", '{"totals": 3}'])
def test_damaged_report_is_written_again(folder: Path, pair: BasePair, damage: str):
    run_catalog(job(folder), pair)
    report = folder.parent / "out" / "a.safetensors.report.json"
    right = report.read_bytes()
    report.write_text(damage)
    run_catalog(job(folder), pair)
    assert report.read_bytes() == right
