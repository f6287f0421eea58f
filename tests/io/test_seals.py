"""A store is believed only as far as it fits: anything else is as good as not there."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stored import COMPARISON, A, B, C, assert_same, compared, file_of, key_of, operators_of

from prolora_jax.errors import UsageError
from prolora_jax.io.containers.tensors import read_tensors, write_tensors
from prolora_jax.io.stores import seals
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.method.basis import Basis, compute_basis


@pytest.fixture
def basis() -> Basis:
    return compute_basis(np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32))


@pytest.fixture
def store(tmp_path: Path, basis: Basis) -> FolderStore:
    made = FolderStore(tmp_path)
    made.put(A, basis)
    made.operators.put(key_of(), operators_of())
    made.operators.put_comparison(compared(), COMPARISON)
    return made


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seals, "_summed", set())


def flip(place: int) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 0x04
        path.write_bytes(bytes(content))

    return spoil


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Other numbers under the same header strings."""

    def spoil(path: Path) -> None:
        tensors, header = read_tensors(path, error=UsageError)
        tensors[name] = np.ascontiguousarray(change(tensors[name]))
        write_tensors(path, tensors, header)

    return spoil


BASES = {
    "last bit": flip(-1),
    "a bit of the first tensor": flip(-600),
    "fewer rows": changed("u", lambda u: u[:7]),
    "fewer columns": changed("v", lambda v: v[:, :3]),
    "more columns": changed("u", lambda u: np.repeat(u, 9, axis=1)),
    "not a number": changed("v", lambda v: v * np.nan),
    "no spectrum": changed("s", lambda s: s * 0),
    "integers": changed("u", lambda u: u.view(np.int32)),
}


@pytest.mark.parametrize("what", BASES)
def test_a_basis_that_is_not_as_it_was_written(what: str, store: FolderStore, basis, caplog):
    (path,) = store.folder.glob("*.safetensors")
    assert store.get(A) is not None
    BASES[what](path)
    assert store.get(A) is None
    assert store.extent(A) is None
    assert "damaged, or not of what its name says" in caplog.text
    store.put(A, basis)
    found = store.get(A)
    assert found is not None
    for ours, theirs in zip(found, basis, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_basis_under_anothers_name(store: FolderStore, basis: Basis):
    (path,) = store.folder.glob("*.safetensors")
    shutil.copy(path, path.with_name(path.name.replace(A, B)))
    assert store.get(A) is not None
    assert store.get(B) is None
    assert store.extent(B) is None
    assert [entry.fingerprint for entry in store.entries()] == [A]


def test_operators_of_another_key_or_with_a_flipped_bit(store: FolderStore):
    other = key_of("prolora", A, C)
    path = file_of(store.folder)
    store.operators.put(other, operators_of(seed=1))
    (there,) = set(store.folder.rglob("*.operators.safetensors")) - {path}
    shutil.copy(there, path)
    assert store.operators.get(key_of()) is None
    assert_same(store.operators.get(other), operators_of(seed=1))
    flip(-1)(there)
    assert store.operators.get(other) is None


def test_every_byte_of_a_comparison_counts(store: FolderStore):
    (path,) = store.folder.rglob("*.comparison.json")
    content = path.read_bytes()
    for old, new in ((b"20", b"99"), (b"0.9,", b"0.8,"), (b"0.7", b"NaN"), (b"null", b"0.5")):
        assert old in content
        path.write_bytes(content.replace(old, new, 1))
        assert store.operators.comparison(compared()) is None
    path.write_bytes(content)
    assert store.operators.comparison(compared()) == COMPARISON


def test_numbers_are_summed_once_in_a_process(store: FolderStore, monkeypatch):
    sums = []
    monkeypatch.setattr(seals.zlib, "crc32", lambda data: sums.append(len(data)) or 0)
    assert store.get(A) is None  # sums of 0 are not what was written
    assert sums
    monkeypatch.undo()
    assert store.get(A) is not None
    monkeypatch.setattr(seals.zlib, "crc32", lambda _: 1 / 0)
    assert store.get(A) is not None
    assert store.extent(A) is not None
