"""What a store deletes, and how it notes what was used."""

import os
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from stored import (
    COMPARISON,
    A,
    B,
    C,
    age,
    assert_same,
    compared,
    days_old,
    file_of,
    key_of,
    operators_of,
)

from prolora_jax.io.atomic import TEMPORARY_SUFFIX
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.io.stores.operator_folder import VERSION, OperatorFolder
from prolora_jax.io.stores.store_files import mark_used
from prolora_jax.method.prepared import digest


def filled(folder: Path) -> FolderStore:
    """Operators and comparisons of three pairs of weights."""
    store = FolderStore(folder)
    for source, target in combinations((A, B, C), 2):
        store.operators.put(key_of("prolora", source, target), operators_of())
        store.operators.put_comparison(compared(source, target), COMPARISON)
    return store


def pairs_in(store: FolderStore) -> set[tuple[str, str]]:
    found = {(entry.key.source, entry.key.target) for entry in store.operators.entries()}
    assert found == {(e.key.source, e.key.target) for e in store.operators.comparisons()}
    return found


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (None, {(A, B), (A, C), (B, C)}),
        ({A, B, C}, {(A, B), (A, C), (B, C)}),
        ({A, B}, {(A, B)}),
        ({A}, set()),
        (set(), set()),
    ],
)
def test_prune_keeps_what_has_both_weights(keep, left, tmp_path: Path):
    store = filled(tmp_path)
    files = list((tmp_path / "operators").iterdir())
    assert len(files) == 6
    size = sum(path.stat().st_size for path in files)
    told = store.prune(keep, dry_run=True)
    assert sorted((tmp_path / "operators").iterdir()) == sorted(files)
    assert store.prune(keep) == told
    assert pairs_in(store) == left
    rest = list((tmp_path / "operators").iterdir())
    assert told == (len(files) - len(rest), size - sum(path.stat().st_size for path in rest))
    assert len(rest) == 2 * len(left)


@pytest.mark.parametrize(
    ("keep", "days", "left"),
    [
        (None, 4.0, {(A, B), (A, C), (B, C)}),
        (None, 2.5, {(A, C), (B, C)}),
        (None, 0.5, {(B, C)}),
        ({A, B}, 0.5, {(A, B), (B, C)}),  # either is enough to stay
        (set(), 2.5, {(A, C), (B, C)}),
    ],
)
def test_prune_by_last_use(keep, days: float, left, tmp_path: Path):
    store = filled(tmp_path)
    for (source, target), old in {(A, B): 3.0, (A, C): 2.0, (B, C): 0.0}.items():
        for key in (key_of("prolora", source, target), compared(source, target)):
            (path,) = (tmp_path / "operators").glob(f"{digest(key)}*")
            age(path, old)
    assert store.prune(keep, days)[0] == 6 - 2 * len(left)
    assert pairs_in(store) == left


def test_prune_takes_what_is_no_use_and_nothing_of_others(tmp_path: Path):
    store = filled(tmp_path)
    folder = tmp_path / "operators"
    name = "0" * 32
    foreign = ["notes.txt", f"{name}.operators.safetensors", f"{name}.v1.json", "x.v1.comparison"]
    foreign += [f"{name.replace('0', 'G')}.v1.operators.safetensors", f"fresh{TEMPORARY_SUFFIX}"]
    useless = [f"{name}.v{VERSION}.operators.safetensors", f"{name}.v{VERSION}.comparison.json"]
    useless += [f"old{TEMPORARY_SUFFIX}"]
    for file in (*foreign, *useless):
        (folder / file).write_bytes(b"123")
    (folder / "deeper").mkdir()
    (folder / "deeper" / useless[0]).write_bytes(b"123")
    age(folder / useless[2], 1.1 / 24)
    age(folder / foreign[0], 1000.0)
    # What stands under a file's name: a folder is nobody's to delete, a link goes as one.
    (folder / f"{'1' * 32}.v{VERSION}.comparison.json").mkdir()
    (tmp_path / f"{'1' * 32}.v2.safetensors").mkdir()
    foreign.append(f"{'1' * 32}.v{VERSION}.comparison.json")
    before = pairs_in(store)
    assert store.prune(None, dry_run=True) == store.prune(None) == (3, 9)
    assert pairs_in(store) == before
    assert not any((folder / file).exists() for file in useless)
    assert store.prune(set())[0] == 6
    assert {path.name for path in folder.iterdir()} == {*foreign, "deeper"}
    assert (folder / "deeper" / useless[0]).exists()


def test_prune_takes_links_that_lead_nowhere_and_not_what_they_lead_to(tmp_path: Path):
    store = filled(tmp_path / "store")
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * 1000)
    for digit, target in enumerate((f"{'1' * 32}.v1.safetensors", "nowhere", str(precious))):
        (tmp_path / "store" / f"{str(digit + 1) * 32}.v1.safetensors").symlink_to(target)
    files, size = store.prune(None)
    assert (files, size < 1000) == (3, True)
    assert precious.read_bytes() == b"x" * 1000
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["operators"]


# --- last use -----------------------------------------------------------------------------------


def test_use_is_noted_once_a_day(tmp_path: Path):
    store = OperatorFolder(tmp_path)
    store.put(key_of(), operators_of())
    store.put_comparison(compared(), COMPARISON)
    uses: list[Callable[[], object]] = [
        lambda: store.get(key_of()),
        lambda: store.comparison(compared()),
    ]
    for key, use in zip((key_of(), compared()), uses, strict=True):
        (path,) = tmp_path.glob(f"{digest(key)}*")
        age(path, 0.9)
        before = path.stat().st_mtime_ns
        assert use() is not None
        assert path.stat().st_mtime_ns == before
        age(path, 1.1)
        store.has(key_of())
        store.entries()
        store.comparisons()
        store.get(key_of("rotation"))
        assert days_old(path) > 1.0  # looking is no use
        assert use() is not None
        assert days_old(path) < 0.1


def test_store_for_reading_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, wanted = OperatorFolder(tmp_path), operators_of()
    store.put(key_of(), wanted)
    path = file_of(tmp_path)
    age(path, 5.0)
    calls = []

    def refuse(*args: object) -> None:
        calls.append(args)
        raise PermissionError(30, "Read-only file system")

    # A test that runs as root is not kept from writing by any mode of the folder.
    monkeypatch.setattr(os, "utime", refuse)
    assert_same(store.get(key_of()), wanted)
    assert len(calls) == 1
    assert days_old(path) > 4.0
    mark_used(tmp_path / "not there")
    assert len(calls) == 1
