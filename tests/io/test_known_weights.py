"""Fingerprints and dot products that are known: of files nobody has changed, never of others."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from toy_pair import make_files

import prolora_jax as pl
from prolora_jax.errors import BaseModelError
from prolora_jax.io import file_state
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.base_models.weight_source import Source
from prolora_jax.io.containers.tensors import write_tensors
from prolora_jax.io.stores import known_weights
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.io.stores.known_weights import KnownRecord, KnownWeights
from prolora_jax.migration import evidence
from prolora_jax.migration.evidence import cosines
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

TICK = 0.02
"""Longer than a tick of the file system's clock, in seconds."""


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as left alone at once: a test cannot set back when a file was changed."""
    monkeypatch.setattr(file_state, "SETTLED_SECONDS", 0.0)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the weights that are hashed, in turn."""
    keys: list[str] = []
    digest = Source.digest

    def noted(self: Source) -> str:
        keys.append(self.placement.key)
        return digest(self)

    monkeypatch.setattr(Source, "digest", noted)
    return keys


def write_model(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = ["conv_in.weight", "down_blocks.0.attentions.0.proj_in.weight", "conv_out.weight"]
    shapes = [(16, 4, 3, 3), (16, 16), (4, 16, 3, 3)]
    tensors = {
        name: rng.standard_normal(shape).astype(np.float16)
        for name, shape in zip(names, shapes, strict=True)
    }
    write_tensors(path, tensors)
    time.sleep(TICK)
    return tensors


def prints(path: Path, folder: Path | None = None) -> dict[str, str]:
    model = load_base_model(path, None if folder is None else KnownWeights(folder))
    return model.fingerprints(model.spec.modules)


@pytest.mark.usefixtures("settled")
def test_unchanged_file_is_not_read_again(tmp_path: Path, read: list[str]):
    write_model(tmp_path / "m.safetensors")
    known = tmp_path / "known"
    first = prints(tmp_path / "m.safetensors", known)
    assert len(read) == len(first) == 3
    assert prints(tmp_path / "m.safetensors", known) == first
    assert len(read) == 3
    # Under another name it is another file, until it was read.
    (tmp_path / "n.safetensors").hardlink_to(tmp_path / "m.safetensors")
    assert prints(tmp_path / "n.safetensors", known) == first
    assert len(read) == 6


@pytest.mark.usefixtures("settled")
def test_what_is_found_later_is_added(tmp_path: Path, read: list[str]):
    path, known = tmp_path / "m.safetensors", KnownWeights(tmp_path / "known")
    write_model(path)
    modules = list(load_base_model(path).spec.modules)
    for module in modules:
        load_base_model(path, known).fingerprint(module)
    assert len(read) == 3
    load_base_model(path, known).fingerprints(modules)
    assert len(read) == 3


def in_place(path: Path) -> None:
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(len(content) - 8)
        file.write(bytes(b ^ 1 for b in content[-8:]))


def in_place_and_times_set_back(path: Path) -> None:
    before = path.stat()
    in_place(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def replaced(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other.safetensors")
    write_model(other, seed=1)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


def mapped(path: Path) -> None:
    page = np.memmap(path, np.uint8, mode="r+")
    page[-3] ^= 1
    page.flush()


CHANGES = [in_place, in_place_and_times_set_back, replaced, mapped]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", CHANGES)
def test_changed_file_is_read_again(change: Callable[[Path], None], tmp_path: Path):
    path, known = tmp_path / "m.safetensors", tmp_path / "known"
    write_model(path)
    size, before = path.stat().st_size, prints(path, known)
    change(path)
    assert path.stat().st_size == size
    assert prints(path, known) == prints(path) != before


@pytest.mark.usefixtures("settled")
def test_link_that_is_turned(tmp_path: Path):
    one, two, link = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "link"))
    write_model(one)
    write_model(two, seed=1)
    link.symlink_to(one)
    assert prints(link, tmp_path / "known") == prints(one)
    link.unlink()
    link.symlink_to(two)
    assert prints(link, tmp_path / "known") == prints(two) != prints(one)


@pytest.mark.usefixtures("settled")
def test_touched_file_is_read_again(tmp_path: Path, read: list[str]):
    path = tmp_path / "m.safetensors"
    write_model(path)
    before = prints(path, tmp_path / "known")
    path.touch()
    assert prints(path, tmp_path / "known") == before
    assert len(read) == 6


def test_fresh_file_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The next write may come within the same tick, or to a page that is dirty already."""
    path, known = tmp_path / "m.safetensors", tmp_path / "known"
    write_model(path)
    prints(path, known)
    old = time.time() - 86400.0
    os.utime(path, (old, old))  # an old modification time alone convinces nobody
    prints(path, known)
    assert not known.exists()
    # A clock that is behind the file's: times in the future say nothing, either.
    monkeypatch.setattr(file_state, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(time, "time", lambda: old)
    prints(path, known)
    assert not known.exists()


@pytest.mark.usefixtures("settled")
def test_file_that_changes_while_it_is_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, known = tmp_path / "m.safetensors", tmp_path / "known"
    write_model(path)
    digest = Source.digest

    def late(self: Source) -> str:
        found = digest(self)
        in_place(path)
        return found

    monkeypatch.setattr(Source, "digest", late)
    prints(path, known)
    assert not known.exists()


def forged(record: KnownRecord) -> KnownRecord:
    """Another content under a seal that fits it."""
    wrong = {place: "0" * 32 for place in record.fingerprints}
    return KnownRecord(record.state, wrong, known_weights._seal(record.state, wrong))


def edited(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return apply


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-20],
    "noise": lambda content: np.random.default_rng(0).bytes(300),
    "deep": lambda content: b"[" * 100_000,
    "list": lambda content: b"[]",
    "other print": edited(
        lambda d: d["fingerprints"].update(dict.fromkeys(d["fingerprints"], "0"))
    ),
    "other state": edited(lambda d: d["state"].__setitem__(2, 1)),
    "more fields": edited(lambda d: d.update(more=1)),
    "no seal": edited(lambda d: d.pop("seal")),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_entry_is_ignored_and_replaced(what: str, tmp_path: Path, read: list[str]):
    path, known = tmp_path / "m.safetensors", tmp_path / "known"
    write_model(path)
    before = prints(path, known)
    (entry,) = known.iterdir()
    entry.write_bytes(DAMAGE[what](entry.read_bytes()))
    assert prints(path, known) == before
    assert len(read) == 6
    assert prints(path, known) == before
    assert len(read) == 6


@pytest.mark.usefixtures("settled")
def test_store_that_takes_nothing_is_no_error(tmp_path: Path):
    path, known = tmp_path / "m.safetensors", tmp_path / "known"
    write_model(path)
    known.write_text("a file where a folder should be")
    assert prints(path, known) == prints(path)


def test_file_that_is_cut_off_is_an_error_and_no_crash(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    write_model(path)
    model = load_base_model(path)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(BaseModelError, match=r"m.safetensors: changed while .* that nobody writes"):
        model.fingerprints(model.spec.modules)


# --- a check believes nothing --------------------------------------------------------------------


@pytest.mark.usefixtures("settled")
def test_verify_never_uses_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = make_files(tmp_path / "toy")
    time.sleep(TICK)
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "store"))
    store = FolderStore(tmp_path / "store")
    places = files.adapter, files.source, files.target
    options = MigrationOptions(method="copy")
    pl.migrate_file(*places, tmp_path / "right.safetensors", options, store=store)
    for path, record in store.known.entries().items():
        path.write_bytes(msgspec.json.encode(forged(record)))
    assert verify_file(tmp_path / "right.safetensors").ok
    # What is forged is believed by a migration, and a check finds it.
    pl.migrate_file(*places, tmp_path / "wrong.safetensors", options, store=store)
    checked = verify_file(tmp_path / "wrong.safetensors")
    assert not checked.ok
    assert any("fingerprint" in problem for problem in checked.problems)


# --- dot products --------------------------------------------------------------------------------

SLOT = "down_blocks.0.attentions.0.transformer_blocks"


def model_of(path: Path, dtype: type, seed: int) -> BaseModel:
    rng = np.random.default_rng(seed)
    tensors = {
        f"{SLOT}.{i}.attn1.to_q.weight": rng.standard_normal((24, 40)).astype(dtype)
        for i in range(3)
    }
    tensors["conv_in.weight"] = np.ones((16, 4, 3, 3), dtype)
    write_tensors(path, tensors)
    time.sleep(TICK)
    return load_base_model(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dot_products_are_those_of_float64(
    dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evidence, "STEP", 100)  # 960 numbers: ten parts, the last one shorter
    monkeypatch.setattr(evidence, "HELD_BYTES", 1)  # of what cannot be read in parts: one by one
    source = model_of(tmp_path / "s.safetensors", dtype, 0)
    target = model_of(tmp_path / "t.safetensors", np.float16, 1)
    paths = [path for path in source.spec.modules if "to_q" in path]
    tables = FolderStore(tmp_path / "store").tables
    found = cosines(source, target, paths, paths[:2], tables)
    rows = [[m.weight(p).astype(np.float64).ravel() for p in paths] for m in (source, target)]
    for i, a in enumerate(rows[0]):
        for j, b in enumerate(rows[1][:2]):
            np.testing.assert_allclose(found[i, j], [a @ b, a @ a, b @ b], rtol=1e-6, atol=1e-4)
    monkeypatch.setattr(evidence, "_cosines", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(cosines(source, target, paths, paths[:2], tables), found)


@pytest.mark.usefixtures("settled")
def test_pair_is_matched_without_reading_it_again(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
):
    files = make_files(tmp_path / "toy")
    time.sleep(TICK)
    store = FolderStore(tmp_path / "store")

    def matched() -> object:
        source, target = (load_base_model(p, store.known) for p in (files.source, files.target))
        return BasePair(source, target, store).matching()

    first, count = matched(), len(read)
    assert count > 0
    monkeypatch.setattr(evidence, "_cosines", lambda *_: pytest.fail("computed again"))
    assert matched() == first
    assert len(read) == count
    # A damaged table is as good as not there.
    monkeypatch.undo()
    for path in store.tables.folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b'"numbers":[', b'"numbers":[1.0,'))
    assert matched() == first


@pytest.mark.usefixtures("settled")
def test_prune_takes_what_is_of_changed_files(tmp_path: Path):
    path, store = tmp_path / "m.safetensors", FolderStore(tmp_path / "store")
    write_model(path)
    prints(path, store.known.folder)
    assert store.prune(None) == (0, 0)
    assert store.prune(set(prints(path).values())) == (0, 0)
    path.touch()
    assert store.prune(None, dry_run=True)[0] == store.prune(None)[0] == 1
    assert not store.known.entries()
