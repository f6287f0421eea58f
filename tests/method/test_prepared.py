"""Operators and comparisons in stores: bit-exact, whole or not there, told apart by their keys."""

from itertools import product
from pathlib import Path

import pytest
from stored import (
    COMPARISON,
    INTO,
    K_S,
    K_T,
    OUT,
    A,
    B,
    C,
    arrays_of,
    assert_same,
    compared,
    file_of,
    key_of,
    operators_of,
)

from prolora_jax.io.containers.tensors import TensorFile
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.io.stores.operator_folder import VERSION, OperatorFolder
from prolora_jax.method.operators import METHODS, FormKind, Method
from prolora_jax.method.prepared import MemoryOperators, OperatorKey, OperatorStore, digest

FORMS: list[tuple[Method, FormKind]] = [
    *((method, "thin") for method in METHODS[1:]),
    *((method, "complement") for method in METHODS[1:]),
    *((method, "dense") for method in METHODS[1:] if method != "prolora"),
    ("prolora", "split"),
]


@pytest.mark.parametrize("stored", ["memory", "folder"])
@pytest.mark.parametrize(("method", "kind"), FORMS)
def test_round_trip_is_exact(method: Method, kind: FormKind, stored: str, tmp_path: Path):
    store = MemoryOperators() if stored == "memory" else OperatorFolder(tmp_path / "new")
    key, wanted = key_of(method), operators_of(method, kind)
    assert isinstance(store, OperatorStore)
    assert {side.form.kind for side in wanted} == {kind}
    assert store.get(key) is store.comparison(compared()) is None
    assert not store.has(key)
    store.put(key, wanted)
    store.put_comparison(compared(), COMPARISON)
    assert store.has(key)
    assert_same(store.get(key), wanted)
    assert store.comparison(compared()) == COMPARISON
    for other in (key_of(method, B, A), key._replace(k_target=K_T + 1)):
        assert store.get(other) is None
        assert not store.has(other)
    assert store.comparison(compared(B, A)) is None
    replacement = operators_of(method, kind, seed=1)
    store.put(key, replacement)
    assert_same(store.get(key), replacement)


def test_files_give_read_only_views(tmp_path: Path):
    store = OperatorFolder(tmp_path)
    store.put(key_of(), operators_of())
    found = store.get(key_of())
    assert found is not None
    for array in arrays_of(found):
        assert not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1.0


def test_rotations_say_how_many_directions_are_still(tmp_path: Path):
    store, wanted = OperatorFolder(tmp_path), operators_of("rotation", "thin")
    assert wanted.left.still >= K_T - K_S  # the unpaired ones: otherwise 0 would pass below
    store.put(key_of("rotation"), wanted)
    found = store.get(key_of("rotation"))
    assert found is not None
    assert (found.left.still, found.right.still) == (wanted.left.still, wanted.right.still)


def test_entries_say_what_is_there(tmp_path: Path):
    store = OperatorFolder(tmp_path)
    assert (store.entries(), store.comparisons()) == ([], [])
    for method, target in product(("rotation", "prolora"), (C, B)):
        store.put(key_of(method, A, target), operators_of(method))
        store.put_comparison(compared(A, target), COMPARISON)
    entries = store.entries()
    assert {entry.key for entry in entries} == {
        key_of(method, A, target) for method in ("rotation", "prolora") for target in (B, C)
    }
    assert [entry.key.method for entry in entries] == ["prolora"] * 2 + ["rotation"] * 2
    assert {entry.shape for entry in entries} == {(OUT, INTO)}
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert sum(entry.size for entry in entries) == size
    assert [entry.key for entry in store.comparisons()] == [compared(A, B), compared(A, C)]


def test_views_outlive_their_file(tmp_path: Path):
    store, wanted, other = OperatorFolder(tmp_path), operators_of(), operators_of(seed=1)
    store.put(key_of(), wanted)
    held = store.get(key_of())
    store.put(key_of(), other)
    assert_same(held, wanted)
    after = store.get(key_of())
    file_of(tmp_path).unlink()
    assert_same(held, wanted)
    assert_same(after, other)
    assert store.get(key_of()) is None


def test_file_replaced_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The header of the old file and the numbers of the new one are never put together."""
    store, new = OperatorFolder(tmp_path), operators_of(kind="split", seed=1)
    store.put(key_of(), operators_of(kind="thin"))
    read, calls = TensorFile._read_header, []

    def read_and_replace(self: TensorFile):
        header = read(self)
        if not calls:
            calls.append(self.path)
            store.put(key_of(), new)
        return header

    monkeypatch.setattr(TensorFile, "_read_header", read_and_replace)
    assert_same(store.get(key_of()), new)
    assert calls


def test_file_of_another_key_is_not_believed(tmp_path: Path):
    store = OperatorFolder(tmp_path)
    for key in (key_of(), compared()):
        other = key._replace(source=C)
        if isinstance(key, OperatorKey):
            store.put(key, operators_of())
        else:
            store.put_comparison(key, COMPARISON)
        for path in tmp_path.glob(f"{digest(key)}*"):
            path.rename(tmp_path / path.name.replace(digest(key), digest(other)))
    assert store.get(key_of("prolora", C)) is store.get(key_of()) is None
    assert store.comparison(compared(C)) is store.comparison(compared()) is None
    assert (store.entries(), store.comparisons()) == ([], [])


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_other_versions_are_ignored_and_pruned(version: int, tmp_path: Path):
    store = OperatorFolder(tmp_path / "operators")
    store.put(key_of(), operators_of())
    store.put_comparison(compared(), COMPARISON)
    for path in store.folder.iterdir():
        path.rename(path.with_name(path.name.replace(f".v{VERSION}.", f".v{version}.")))
    assert store.get(key_of()) is store.comparison(compared()) is None
    assert not store.has(key_of())
    assert (store.entries(), store.comparisons()) == ([], [])
    assert FolderStore(tmp_path).prune({A, B}, older_than=1.0)[0] == 2
    assert list(store.folder.iterdir()) == []


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS[1:])
def test_only_rotations_depend_on_their_smallest_cosine(method: Method):
    keys = {OperatorKey.of((A, B), method, (K_S, K_T), min_cos) for min_cos in (0.1, 0.2, 0.1)}
    assert len(keys) == len(set(map(digest, keys))) == (2 if method == "rotation" else 1)


def test_every_field_tells_keys_apart():
    key, other = key_of("rotation"), OperatorKey(B, A, "prolora", 21, 34, 0.2)
    keys = [key, *(key._replace(**{name: getattr(other, name)}) for name in key._fields)]
    match = compared()
    keys += [match, *(match._replace(**{name: "own"}) for name in match._fields)]
    assert len(set(map(digest, keys))) == len(keys)
