"""What is no safetensors file is named by what it is."""

from pathlib import Path

import numpy as np
import pytest

from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter

STARTS = {
    "an SQLite database, which Draw Things": b"SQLite format 3\x00",
    "a RAR archive; unpack it": b"Rar!\x1a\x07\x01\x00",
    "a 7z archive; unpack it": b"7z\xbc\xaf\x27\x1c",
    "a GGML file; convert it": b"lmgg",
    "an AppleDouble file, which macOS writes": b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n",
    "an xz archive": b"\xfd7zXZ\x00",
}


@pytest.mark.parametrize("found", STARTS)
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_files_of_others_are_named(found: str, name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(STARTS[found] + b"\x00" * 200)
    with pytest.raises(AdapterRefused, match=f"found {found}.*expected a safetensors") as caught:
        load_adapter(tmp_path / name)
    assert caught.value.code is Refusal.NOT_SAFETENSORS


def test_numpys_files_are_named(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.ones(3))
    np.savez(tmp_path / "b.npz", x=np.ones(3))
    for name, found in (("a.npy", r"a NumPy array \(.npy\)"), ("b.npz", r"NumPy arrays \(.npz\)")):
        for allow in (False, True):
            with pytest.raises(AdapterRefused, match=f"found {found}") as caught:
                load_adapter(tmp_path / name, allow_pickle=allow)
            assert caught.value.code is Refusal.NOT_SAFETENSORS
