"""What a store keeps: of one file little, within a limit, and never less than what is in use."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from patience import UNTIL_HUNG
from stored import A, B, C, age, key_of, operators_of
from toy_pair import ToyFiles, make_files

import prolora_jax as pl
from prolora_jax.cli.console import number_of_bytes
from prolora_jax.cli.main import run
from prolora_jax.errors import UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.stores import basis_store, store_files
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.method.basis import Basis
from prolora_jax.migration.pair import BasePair


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("toy"))


def basis_of(seed: int) -> Basis:
    rng = np.random.default_rng(seed)
    u, s, v = np.linalg.svd(rng.standard_normal((40, 40)))
    return Basis(u.astype(np.float32), s, v.T.astype(np.float32).copy())


def names(store: Path) -> set[str]:
    return {p.name for p in store.rglob("*.v*") if "in-use" not in p.parts}


# --- one file ------------------------------------------------------------------------------------


def kinds(store: Path) -> set[str]:
    return {name.split(".", 2)[2] for name in names(store)}


def test_one_file_leaves_comparisons_and_tables_alone(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    common = ["--source", str(files.source), "--target", str(files.target), "--workers", "1"]
    outputs = []
    for name, more in (("few", []), ("again", []), ("all", ["--keep-operators"])):
        out, store = tmp_path / f"{name}.safetensors", tmp_path / ("all" * bool(more) or "few")
        command = ["migrate", str(files.adapter), "--out", str(out), "--store", str(store), "-q"]
        assert run([*command, *common, *more]) == 0
        outputs.append(load_adapter(out))
    capsys.readouterr()
    few = {"comparison.json", "table.json"}
    assert kinds(tmp_path / "few") - {"weights.json"} == few
    assert few | {"safetensors", "operators.safetensors"} <= kinds(tmp_path / "all")
    assert not [p for p in (tmp_path / "few" / "in-use").iterdir() if p.name != ".gate"]
    # With operators that are kept and without: the same bits.
    assert outputs[0].fingerprint == outputs[1].fingerprint == outputs[2].fingerprint


def test_what_was_there_before_stays(files: ToyFiles, tmp_path: Path):
    folder = tmp_path / "store"
    list(pl.build_subspaces([files.source], FolderStore(folder)))
    before = names(folder)
    store = FolderStore(folder, keeps=False)
    pl.migrate_file(
        files.adapter, files.source, files.target, tmp_path / "out.safetensors", store=store
    )
    assert len(names(folder)) > len(before)
    store.close()
    assert before <= names(folder)
    assert {name for name in names(folder) if name.endswith("safetensors")} <= before


def test_run_that_is_killed_leaves_nothing_for_good(tmp_path: Path):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from test_store_limit import *\n"
        "store = FolderStore(Path(sys.argv[1]), keeps=False)\n"
        "store.put(A, basis_of(0)); store.put(B, basis_of(1)); os._exit(9)"
    )
    here = str(Path(__file__).parent)
    support = str(Path(__file__).parents[1] / "support")
    environment = f"import sys; sys.path.insert(0, {support!r})\n"
    left = subprocess.run(
        [sys.executable, "-c", environment + code, str(tmp_path), here], timeout=UNTIL_HUNG
    )
    assert left.returncode == 9
    assert len(names(tmp_path)) == 2
    store = FolderStore(tmp_path, keeps=False)
    assert store.get(A) is not None  # another run goes on where that one was
    assert len(names(tmp_path)) == 2
    store.close()
    assert not names(tmp_path)


def test_what_another_run_has_made_and_this_one_uses(tmp_path: Path):
    one, two = (FolderStore(tmp_path, keeps=False) for _ in range(2))
    one.put(A, basis_of(0))
    one.put(B, basis_of(1))
    assert two.get(A) is not None
    one.close()
    assert {name[:32] for name in names(tmp_path)} == {A}
    assert two.get(A) is not None
    two.close()
    assert not names(tmp_path)


# --- a limit -------------------------------------------------------------------------------------


def filled(folder: Path) -> FolderStore:
    """Operators of three pairs, the first used longest ago; each 100 kB or so."""
    store = FolderStore(folder)
    for days, (source, target) in zip((9, 5, 3), ((A, B), (A, C), (B, C)), strict=True):
        store.operators.put(key_of("prolora", source, target), operators_of())
        for path in store.operators.folder.iterdir():
            if time.time() - path.stat().st_mtime < store_files.DAY:
                age(path, days)
    store.close()
    return store


def pairs_in(folder: Path) -> set[tuple[str, str]]:
    return {(e.key.source, e.key.target) for e in FolderStore(folder).operators.entries()}


def test_least_recently_used_goes_first(tmp_path: Path):
    filled(tmp_path)
    size = next((tmp_path / "operators").iterdir()).stat().st_size
    FolderStore(tmp_path, limit=3 * size).close()
    assert pairs_in(tmp_path) == {(A, B), (A, C), (B, C)}
    store = FolderStore(tmp_path, limit=2 * size)
    assert store.operators.get(key_of("prolora", A, B)) is not None  # now it is the latest
    store.close()
    assert pairs_in(tmp_path) == {(A, B), (B, C)}
    FolderStore(tmp_path, limit=0).close()
    assert pairs_in(tmp_path) == set()


def test_small_files_go_last_and_foreign_ones_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = filled(tmp_path)
    monkeypatch.setattr(store_files, "_SMALL", 4096)
    small = tmp_path / "operators" / f"{'0' * 32}.v1.comparison.json"
    foreign = [tmp_path / "notes.safetensors", tmp_path / "operators" / "mine.v1.json"]
    for path in (small, *foreign):
        path.write_bytes(b"x" * 1000)
        age(path, 100)
    FolderStore(tmp_path, limit=1000).close()
    assert pairs_in(tmp_path) == set()
    assert small.exists()
    FolderStore(tmp_path, limit=0).close()
    assert not small.exists()
    assert all(path.exists() for path in foreign)
    assert store.operators.get(key_of()) is None


HOLDS = """
import sys
sys.path.insert(0, {support!r}); sys.path.insert(0, {here!r})
from stored import assert_same
from test_store_limit import *
store = FolderStore(Path({folder!r}))
wanted = store.operators.get(key_of("prolora", A, B))
print("holds", flush=True)
sys.stdin.readline()
assert_same(FolderStore(Path({folder!r})).operators.get(key_of("prolora", A, B)), wanted)
print("whole", flush=True)
sys.stdin.readline()
"""


def test_what_another_process_uses_stays(tmp_path: Path):
    filled(tmp_path)
    here, support = Path(__file__).parent, Path(__file__).parents[1] / "support"
    code = HOLDS.format(here=str(here), support=str(support), folder=str(tmp_path))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "holds\n"
        FolderStore(tmp_path, limit=0).close()
        assert pairs_in(tmp_path) == {(A, B)}
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "whole\n"
        other.kill()
        other.wait(UNTIL_HUNG)
    FolderStore(tmp_path, limit=0).close()  # it has ended without a word
    assert pairs_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("500MB", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("20 g", 2 * 10**10), ("7b", 7)],
)
def test_bytes_as_people_write_them(text: str, size: int):
    assert number_of_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1e9", "5 apples", "1XB"])
def test_no_number_of_bytes(text: str):
    with pytest.raises(UsageError, match="expected a number of bytes, such as 20GB"):
        number_of_bytes(text)


def test_limit_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    filled(tmp_path)
    command = ["subspaces", "list", "--store", str(tmp_path)]
    assert run([*command, "--store-limit", "much"]) == 2
    assert "--store-limit much: expected a number of bytes" in capsys.readouterr().err
    assert run([*command, "--store-limit", "0"]) == 0
    assert pairs_in(tmp_path) == set()


# --- what is to come -----------------------------------------------------------------------------


@pytest.mark.parametrize("keeps", [True, False])
def test_store_says_how_large_a_pair_will_be(
    keeps: bool,
    files: ToyFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(basis_store, "WORTH_SAYING", 1)
    store = FolderStore(tmp_path / "store", keeps=keeps)
    pair = BasePair(load_base_model(files.source), load_base_model(files.target), store)
    matched = {p: s for p, s in pair.matching().pairs.items() if ".attn1." in p}
    with caplog.at_level(logging.WARNING):
        pair.measure(matched, pl.MigrationOptions())
    (said,) = caplog.messages
    fate = "and operators will be written, and will stay" if keeps else "and go when the command"
    assert "GB of subspaces" in said
    assert fate in said
    # It is about right, and said once: what is there is not expected again.
    told = pair._bytes_to_come([])
    assert told == 0
    caplog.clear()
    pair.measure(matched, pl.MigrationOptions())
    assert not caplog.messages
