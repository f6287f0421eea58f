"""What people hold for a safetensors file, told by its first bytes."""

from pathlib import Path

from prolora_jax.errors import Refusal
from prolora_jax.io.guarded import open_regular

PICKLE_REMEDY = "may run code when opened"
PICKLE_SUFFIXES = frozenset({".pt", ".bin", ".ckpt", ".pth"})

_PROTOCOLS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_ZIP = b"PK\x03\x04"
_OTHERS = (
    (b"version https://git-lfs", "a git-lfs pointer; fetch the file itself with `git lfs pull`"),
    (b"GGUF", "a GGUF file; convert it to safetensors"),
    *((magic, "a GGML file; convert it to safetensors") for magic in (b"lmgg", b"fmgg", b"tjgg")),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it"),
    (b"BZh", "a bzip2 archive; unpack it"),
    (
        b"SQLite format 3\x00",
        "an SQLite database, which Draw Things keeps its models in; export it as safetensors",
    ),
    (b"\x93NUMPY", "a NumPy array (.npy); save named tensors as safetensors"),
    (b"\x89HDF", "an HDF5 file; convert it to safetensors"),
    *(
        (magic, "an AppleDouble file, which macOS writes beside others; give the one without `._`")
        for magic in (b"\x00\x05\x16\x07", b"\x00\x05\x16\x00")
    ),
)
_ARRAY = b".npy"
_PAGES = frozenset({b"<!doc", b"<html", b"<?xml"})


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, or a zip archive of torch's, which is one inside."""
    return _pickle(path, _head(path)) is not None


def signature(path: Path) -> tuple[Refusal, str] | None:
    """What a file is that is no safetensors file: code, and what was found with the remedy.

    Args:
        path: a file whose header could not be read.

    Returns:
        None where the first bytes do not tell.
    """
    head = _head(path)
    if not head:
        return Refusal.TRUNCATED, "found an empty file; fetch it again"
    pickle = _pickle(path, head)
    if pickle is not None:
        return Refusal.PICKLE, f"found {pickle}, which {PICKLE_REMEDY}"
    for start, found in _OTHERS:
        if head.startswith(start):
            return Refusal.NOT_SAFETENSORS, f"found {found}"
    if head.startswith(_ZIP):
        found = "found NumPy arrays (.npz); save named tensors as safetensors"
        return Refusal.NOT_SAFETENSORS, found
    if head.lstrip()[:5].lower() in _PAGES:
        found = "found a web page; fetch the file itself, signed in if need be"
        return Refusal.NOT_SAFETENSORS, found
    return None


def _pickle(path: Path, head: bytes) -> str | None:
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return None  # safetensors: the length of a header may look like anything
    if head.startswith(_ZIP) and not _is_npz(head):
        return "a zip archive (torch .pt or .ckpt)"
    if head.startswith(_PROTOCOLS):
        return "a pickle"
    # The oldest pickles start like any text; a web page or pointer may have this name, too.
    if path.suffix.lower() in PICKLE_SUFFIXES and head[:1] in {b"(", b"]", b"}", b"c"}:
        return "a pickle"
    return None


def _is_npz(head: bytes) -> bool:
    """Whether the first file in an archive is an array, by its name, which stands at byte 30."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].endswith(_ARRAY)


def _head(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(512)
