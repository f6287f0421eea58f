"""Files: written whole or not at all, read tensor by tensor, refused with a reason."""

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors import safe_open
from safetensors.numpy import load_file, save
from safetensors.torch import save_file as save_torch

from prolora_jax.errors import (
    AdapterRefused,
    BaseModelError,
    OutputError,
    ProloraError,
    Refusal,
    UsageError,
)
from prolora_jax.io import atomic
from prolora_jax.io.containers.tensors import TensorFile, read_tensors, write_tensors

DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_]
INTACT = save({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)})


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def one(dtype: str, size: int, start: int, end: int) -> bytes:
    return header({"a": {"dtype": dtype, "shape": [size], "data_offsets": [start, end]}})


OTHER, TRUNCATED = Refusal.NOT_SAFETENSORS, Refusal.TRUNCATED
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
# What people hold for a safetensors file: name, content, code, what the message says.
BAD = [
    ("empty", b"", TRUNCATED, "found an empty file; fetch it again"),
    ("short", b"\x10\x00", TRUNCATED, "found 2 bytes of 8; fetch it again"),
    ("cut-header", INTACT[:40], TRUNCATED, r"found 40 bytes of \d+; fetch it again"),
    ("cut-body", INTACT[:-5], TRUNCATED, f"found {len(INTACT) - 5} bytes of {len(INTACT)};"),
    ("tail", INTACT + b"xyz", OTHER, "found 3 bytes after the last tensor"),
    ("page", b"<!DOCTYPE html><html><title>", OTHER, "found a web page; .* signed in"),
    ("indented-page", b"\n  <html>", OTHER, "found a web page"),
    ("lfs", LFS, OTHER, "git-lfs pointer; .*git lfs pull"),
    ("gguf", b"GGUF" + bytes(8), OTHER, "a GGUF file; convert it"),
    ("gzip", b"\x1f\x8b\x08" + bytes(8), OTHER, "a gzip archive; unpack it"),
    ("pickle", b"\x80\x02}q\x00K\x01s....", Refusal.PICKLE, "a pickle, .*in a sandbox"),
    ("noise", bytes(range(200, 256)), OTHER, "no readable header .*too large"),
    ("not-json", (9).to_bytes(8, "little") + b"{not json", OTHER, "no readable header"),
    ("list", header([1, 2]), OTHER, "no readable header"),
    ("hole", one("F32", 1, 4, 8) + bytes(8), OTHER, "no readable header"),
    ("dtype", one("Q4", 1, 0, 4) + bytes(4), OTHER, "no readable header .*Q4"),
    ("size", one("F32", 9, 0, 4) + bytes(4), OTHER, "no readable header"),
]


@pytest.mark.parametrize("error", [AdapterRefused, BaseModelError])
@pytest.mark.parametrize(("name", "content", "code", "message"), BAD, ids=[bad[0] for bad in BAD])
def test_bad_files_say_what_they_are(tmp_path, name, content, code, message, error):
    file = tmp_path / f"{name}.safetensors"
    file.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        TensorFile(file, error=error)
    assert caught.value.code is code
    text = str(caught.value)
    assert text.startswith(f"{file}: found ")
    assert "expected a safetensors file" in text
    assert "\n" not in text


def test_a_torch_checkpoint_is_refused_unopened(tmp_path):
    file = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(2)}, file)
    assert zipfile.is_zipfile(file)
    with pytest.raises(AdapterRefused, match=r"found a zip archive .*in a sandbox") as caught:
        TensorFile(file, error=AdapterRefused)
    assert caught.value.code is Refusal.PICKLE


@pytest.mark.parametrize("error", [AdapterRefused, BaseModelError])
def test_a_wrong_path_is_the_commands_fault(tmp_path, error):
    with pytest.raises(UsageError, match="missing.safetensors: no such file; check the path") as e:
        TensorFile(tmp_path / "missing.safetensors", error=error)
    assert (e.value.code, e.value.exit_code) == (Refusal.MISSING_FILE, 2)
    with pytest.raises(UsageError, match="found a folder; expected a safetensors file"):
        TensorFile(tmp_path, error=error)


@contextmanager
def nobody() -> Iterator[None]:
    """As a user without rights; root, who may read everything, becomes one."""
    before = os.getresuid()
    if before[1] == 0:
        os.setresuid(65534, 65534, 0)  # the last one lets it come back
    try:
        yield
    finally:
        os.setresuid(*before)


def test_an_unreadable_file_is_the_commands_fault():
    with TemporaryDirectory() as name:
        folder, file = Path(name), Path(name) / "locked.safetensors"
        folder.chmod(0o755)  # tmp_path lies in a folder that only its owner may enter
        file.write_bytes(INTACT)
        file.chmod(0o644)
        with nobody():
            TensorFile(file, error=AdapterRefused)
        file.chmod(0)
        with nobody(), pytest.raises(UsageError, match="may not be read; check its permissions"):
            TensorFile(file, error=AdapterRefused)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_read_bit_by_bit(tmp_path, dtype):
    file = tmp_path / "eight.safetensors"
    every = torch.arange(256, dtype=torch.uint8).view(dtype).reshape(2, 8, 16)
    save_torch({"a": torch.ones(3), "b": every, "c": every[0, 0, 0].clone()}, file)
    opened = TensorFile(file, error=AdapterRefused)
    eight = opened.tensor("b")
    assert (eight.dtype.name, eight.shape) == (str(dtype).removeprefix("torch."), (2, 8, 16))
    assert opened.tensor("c").shape == ()
    assert_array_equal(eight.astype(np.float32), every.float().numpy())
    # Read whole, as an adapter is: in a dtype that everyone knows and that has the same numbers.
    tensors, _ = read_tensors(file, error=AdapterRefused)
    assert tensors["b"].dtype == np.float16
    assert_array_equal(tensors["b"].astype(np.float32), every.float().numpy())


def test_other_narrow_dtypes_are_refused_when_they_are_read(tmp_path):
    file = tmp_path / "eight.safetensors"
    save_torch({"a": torch.ones(2), "b": torch.ones(2).to(torch.float8_e5m2fnuz)}, file)
    opened = TensorFile(file, error=AdapterRefused)
    assert_array_equal(opened.tensor("a"), np.ones(2))
    with pytest.raises(AdapterRefused, match=r"tensor b has dtype F8_E5M2FNUZ; expected F16") as e:
        opened.tensor("b")
    assert e.value.code is Refusal.UNSUPPORTED_DTYPE


@pytest.mark.parametrize("dtype", DTYPES, ids=[np.dtype(d).name for d in DTYPES])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3), (2, 3, 3, 3)], ids=str)
def test_what_is_written_is_read(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 2, shape).astype(dtype)
    write_tensors(tmp_path / "f.safetensors", {"a": array})
    tensors, metadata = read_tensors(tmp_path / "f.safetensors", error=AdapterRefused)
    assert tensors["a"].dtype == array.dtype
    assert tensors["a"].shape == shape
    assert_array_equal(tensors["a"], array)
    assert metadata == {}


def test_views_are_written_as_they_look(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {
        "transposed": base.T,
        "strided": base[::2, 1::2],
        "reversed": base[::-1],
        "fortran": np.asfortranarray(base),
        "broadcast": np.broadcast_to(base[0], (3, 6)),
        "swapped": base.astype(">f4"),
    }
    write_tensors(tmp_path / "f.safetensors", views)
    for key, array in load_file(tmp_path / "f.safetensors").items():
        assert_array_equal(array, views[key], err_msg=key)


def test_writing_leaves_the_callers_dict_alone(tmp_path):
    view = np.arange(6.0).reshape(2, 3).T
    tensors = {"a": view}
    write_tensors(tmp_path / "f.safetensors", tensors, {"k": "v"})
    assert tensors == {"a": view}
    assert tensors["a"] is view
    assert not view.flags.c_contiguous


def test_headers_are_read_without_the_tensors(tmp_path):
    path = tmp_path / "f.safetensors"
    tensors = {"b": np.ones((2, 3), np.float16), "a": np.ones(4, ml_dtypes.bfloat16)}
    write_tensors(path, tensors, {"name": "größe", "other": "x"})
    file = TensorFile(path, error=AdapterRefused)
    assert file.keys == ("a", "b")
    assert file.shapes() == {"a": (4,), "b": (2, 3)}
    assert (file.dtype("a"), file.dtype("b")) == ("BF16", "F16")
    assert file.metadata == {"name": "größe", "other": "x"}


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_an_open_file_survives_its_replacement(tmp_path):
    path = tmp_path / "f.safetensors"
    write_tensors(path, {"a": np.ones(1000, np.float32)})
    before = TensorFile(path, error=AdapterRefused)
    write_tensors(path, {"a": np.zeros(10, np.float32)})
    assert_array_equal(before.tensor("a"), np.ones(1000))
    assert leftovers(tmp_path) == ["f.safetensors"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "report.json"
    atomic.write_text(path, "old")

    def write_half() -> None:
        with atomic.atomic_path(path) as temporary:
            assert temporary.parent == tmp_path
            temporary.write_text("ne")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == ["report.json"]


def test_a_writer_that_writes_nothing_fails_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(OutputError, match="never: cannot be written"),
        atomic.atomic_path(tmp_path / "never"),
    ):
        pass
    assert leftovers(tmp_path) == []


def test_a_failed_rename_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="taken: cannot be written") as e:
        atomic.write_bytes(tmp_path / "taken", b"x")
    assert e.value.code is Refusal.CANNOT_WRITE
    assert leftovers(tmp_path) == ["taken"]


def test_writing_makes_folders_and_takes_the_longest_names(tmp_path):
    path = tmp_path / "a" / "b" / ("n" * 255)
    atomic.write_bytes(path, b"x")
    atomic.write_text(path, "größe")
    assert path.read_text(encoding="utf-8") == "größe"
    assert leftovers(path.parent) == [path.name]


def test_files_have_the_permissions_that_others_have(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_tensors(tmp_path / "f.safetensors", {"a": np.ones(1)})
    modes = {entry.stat().st_mode for entry in tmp_path.iterdir()}
    assert len(modes) == 1


def test_errors_share_a_base():
    assert issubclass(AdapterRefused, ProloraError)
    assert (AdapterRefused.exit_code, BaseModelError.exit_code) == (1, 2)


PLAIN = {"a": np.ones(2, np.float32)}
FULL = OSError(28, "No space left on device")
STEPS: list[tuple[str, Callable[[Path], object]]] = [
    ("fsync", lambda path: atomic.write_text(path, "new")),
    ("replace", lambda path: atomic.write_bytes(path, b"new")),
    ("fsync", lambda path: write_tensors(path, PLAIN)),
]


@pytest.mark.parametrize(("step", "write"), STEPS)
def test_a_full_disk(tmp_path, monkeypatch, step, write):
    path = tmp_path / "out.safetensors"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(os, step, fail)
    message = r"out.safetensors: cannot be written \(No space left on device\); expected .*; make"
    with pytest.raises(OutputError, match=message) as caught:
        write(path)
    assert (caught.value.code, caught.value.exit_code) == (Refusal.CANNOT_WRITE, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.safetensors"]
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda p: atomic.write_text(p, "x"), lambda p: write_tensors(p, PLAIN)):
        with pytest.raises(OutputError, match=r"cannot be written \(.+\); expected a folder"):
            write(tmp_path / "file" / "out.safetensors")


def test_the_same_content_has_the_same_bytes(tmp_path: Path):
    """The library's order of header strings changes from call to call."""
    words = ["plain", 'quote " and \\ and \n\t\b\f', "é 名前", "\x01\x7f", "</script>"]
    metadata = {f"key {n}": word for n, word in enumerate(words)}
    tensors = {"b": np.arange(3, dtype=np.float32), "a": np.ones((2, 1), np.float16)}
    found = set()
    for turn in range(12):
        given = dict(sorted(metadata.items(), key=lambda item: hash((turn, item[0]))))
        write_tensors(tmp_path / "x.safetensors", tensors, given)
        found.add((tmp_path / "x.safetensors").read_bytes())
    assert len(found) == 1
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == metadata
    for key, array in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(array, tensors[key])
