"""The lock of an output folder, and copies of outputs."""

import os
from pathlib import Path

import pytest

from prolora_jax.errors import OutputError, Refusal, UsageError
from prolora_jax.io.outputs.catalog_files import copy_output
from prolora_jax.io.outputs.lock import LOCK, locked
from prolora_jax.io.outputs.manifest import NAME, Manifest


def test_a_lock_is_written_and_taken_again(tmp_path: Path):
    for _ in range(2):
        with locked(tmp_path / "o"):
            assert (tmp_path / "o" / LOCK).read_text() == f"{os.getpid()}\n"
            with (
                pytest.raises(UsageError, match=f"another run writes there .process {os.getpid()}"),
                locked(tmp_path / "o"),
            ):
                pass


@pytest.mark.parametrize("how", ["symbolic", "dangling", "hard", "pipe", "text"])
def test_what_is_no_lock_is_left_alone(how: str, tmp_path: Path):
    out, precious = tmp_path / "o", tmp_path / "precious"
    out.mkdir()
    lock = out / LOCK
    precious.write_text("precious data")
    if how == "symbolic":
        lock.symlink_to(precious)
    elif how == "dangling":
        lock.symlink_to(tmp_path / "new")
    elif how == "hard":
        lock.hardlink_to(precious)
    elif how == "pipe":
        os.mkfifo(lock)
    else:
        lock.write_text("precious data")
    wanted = "expected a file that a run of prolora wrote"
    with pytest.raises(UsageError, match=wanted) as caught, locked(out):
        pass
    assert caught.value.code is Refusal.LOCKED
    assert precious.read_text() == "precious data"
    assert not (tmp_path / "new").exists()
    assert how != "text" or lock.read_text() == "precious data"


def test_a_manifest_is_no_link_and_no_pipe(tmp_path: Path):
    (tmp_path / "mine.db").write_bytes(b"")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / NAME).symlink_to(tmp_path / "mine.db")
    with pytest.raises(UsageError, match="found a link; expected a manifest"):
        Manifest(tmp_path / "o", write=True)
    assert (tmp_path / "mine.db").read_bytes() == b""
    (tmp_path / "o" / NAME).unlink()
    os.mkfifo(tmp_path / "o" / NAME)
    with pytest.raises(UsageError, match="found a pipe; expected a manifest"):
        Manifest(tmp_path / "o", write=True)


@pytest.mark.parametrize("folder", [False, True])
def test_copies_share_nothing_with_what_they_are_of(folder: bool, tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "deep" / "b"
    file = Path("inner/x") if folder else Path()
    (first / file).parent.mkdir(parents=True, exist_ok=True)
    (first / file).write_bytes(b"content" * 1000)
    copy_output(first, second)
    copy_output(first, second)  # what is there is replaced
    assert (second / file).read_bytes() == b"content" * 1000
    assert not os.path.samefile(first / file, second / file)
    with (first / file).open("r+b") as changed:
        changed.write(b"CHANGED")
    assert (second / file).read_bytes() == b"content" * 1000


def test_a_copy_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match="cannot be written"):
        copy_output(tmp_path / "a", tmp_path / "file" / "b")
    assert not list(tmp_path.glob(".*"))
