"""Files beside an adapter that are about it: found by name, read for their licence, carried along.

Names are those of the programs that write them (docs/formats.md): the adapter's stem, or its whole
name, and one of `DOCUMENTS`, `TEXTS` or `PREVIEWS`; of a folder that peft wrote, the pictures and
the README in it.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prolora_jax.io import atomic
from prolora_jax.io.documents import (
    BadDocument,
    parse_json,
    parse_yaml,
    read_json_document,
    read_text_document,
    read_yaml_document,
)
from prolora_jax.io.guarded import UnfitFile, open_regular, read_small

DOCUMENTS = (
    ".civitai.info",
    ".civitai.json",
    ".cm-info.json",
    ".cminfo.json",
    ".metadata.json",
    ".swarm.json",
    ".info",
    ".json",
)
TEXTS = (".txt", ".md", ".yaml", ".yml")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".webm")
PREVIEWS = tuple(f"{kind}{p}" for kind in (".preview", "", ".thumb") for p in _PICTURES)
_ENDINGS = (*DOCUMENTS, *TEXTS, *PREVIEWS)
_SHOWN = frozenset(_PICTURES) - {".mp4", ".webm"}
_README = "README.md"
_LARGEST_COPIED = 2**30
"""Bytes of a preview that is copied: films have up to 100 MB."""

UNREADABLE, KEPT, LINKED = "sidecar-unreadable", "sidecar-exists", "sidecar-link"
_HASHES = frozenset(
    {"hash", "hashes", "sha256", "autov1", "autov2", "autov3", "blake3", "crc32", "modelhash"}
)
_PICTURE_LISTS = frozenset({"images", "gallery"})


@dataclass(frozen=True)
class Sidecar:
    """One file about an adapter.

    Attributes:
        path: where it is.
        ending: what its name has beyond the adapter's.
        whole: whether its name begins with the adapter's whole name, suffix included; for a file
            inside of a folder that peft wrote, `ending` is its name there, and this is false.
    """

    path: Path
    ending: str
    whole: bool = False


@dataclass(frozen=True)
class Carried:
    """What was carried along.

    Attributes:
        preview: the picture that shows the adapter, where it is now.
        flags: `UNREADABLE`, `KEPT`, `LINKED`, with numbers.
    """

    preview: Path | None = None
    flags: tuple[str, ...] = ()


class Folders:
    """Sidecars of many adapters; a folder is listed once."""

    def __init__(self):
        self._names: dict[Path, frozenset[str]] = {}

    def of(self, adapter: Path) -> list[Sidecar]:
        """Sidecars of an adapter file, or of a folder that peft wrote; sorted, previews last.

        A folder that cannot be listed has none.
        """
        if adapter.is_dir():
            names = self._listed(adapter)
            inside = [n for n in names if n == _README or n.lower().endswith(_PICTURES)]
            return [Sidecar(adapter / name, name) for name in sorted(inside)]
        folder, own, stem = adapter.parent, adapter.name, adapter.stem
        names, found = self._listed(folder), []
        for ending in _ENDINGS:
            for start, whole in ((stem, False), (own, True)):
                name = start + ending
                if name in names and name != own:
                    found.append(Sidecar(folder / name, ending, whole))
        return found

    def _listed(self, folder: Path) -> frozenset[str]:
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]


def names_beside(name: str, *, previews: bool) -> list[str]:
    """Names that sidecars of an adapter file may have, in its own folder.

    Args:
        name: of the file.
        previews: whether pictures and films are among them.
    """
    endings = _ENDINGS if previews else (*DOCUMENTS, *TEXTS)
    return [start + ending for start in (Path(name).stem, name) for ending in endings]


def documents(sidecars: list[Sidecar]) -> Iterator[tuple[Path, object]]:
    """Sidecars that hold fields, parsed: JSON, YAML, the YAML at the head of a README.

    Yields:
        Path, and what it holds; None for one that cannot be read.
    """
    for sidecar in sidecars:
        name = sidecar.path.name.lower()
        if name.endswith((*DOCUMENTS, ".yaml", ".yml")) or name.endswith(".md"):
            yield sidecar.path, _parsed(sidecar.path)


def carry(sidecars: list[Sidecar], output: Path, note: Mapping[str, str]) -> Carried:
    """Have the sidecars of an adapter beside its output, under the output's name.

    JSON objects lose the hashes of the old file, which would make programs take the new one for it,
    and get `note` under `prolora`. A file that is there already and is no earlier copy stays. A
    link is followed inside of its own folder alone: what it leads to would be published.

    Args:
        sidecars: of the input.
        output: of the migration, file or folder.
        note: says where the adapter comes from.

    Raises:
        OutputError: the disk does not take them.
    """
    preview, flags = None, dict.fromkeys((UNREADABLE, KEPT, LINKED), 0)
    for sidecar in sidecars:
        if _leads_away(sidecar.path):
            flags[LINKED] += 1
            continue
        place = _place(sidecar, output)
        content, unread = None, False
        if sidecar.ending.endswith(DOCUMENTS):
            document = _parsed(sidecar.path)
            unread = document is None
            if isinstance(document, dict):
                content = _rewritten(document, output, note)
        try:
            flags[KEPT] += not _put(sidecar.path, content, place)
        except FileNotFoundError:  # it went away meanwhile
            continue
        except OSError:  # a pipe, a file of others, one larger than anything that shows an adapter
            unread = True
        flags[UNREADABLE] += unread
        shown = place.suffix.lower() in _SHOWN and place.is_file()
        preview = preview or (place if shown else None)
    return Carried(preview, tuple(f"{flag}: {n}" for flag, n in flags.items() if n))


def _parsed(path: Path) -> object:
    try:
        if path.suffix.lower() == ".md":
            text = read_text_document(path)
            head = text.split("---", 2)
            return parse_yaml(head[1]) if text.startswith("---") and len(head) == 3 else {}
        if path.suffix.lower() in {".yaml", ".yml"}:
            return read_yaml_document(path)
        return read_json_document(path)
    except BadDocument:
        return None


def _leads_away(path: Path) -> bool:
    """Whether a link leads out of the folder that it is in.

    The hub's cache is an exception: there all of a model's files are links to one other folder,
    the adapter among them, and the content of that folder is what the hub gave.
    """
    if not path.is_symlink():
        return False
    target, folder = Path(os.path.realpath(path)), path.parent.resolve()
    return not (target.is_relative_to(folder) or _is_blob(target, folder))


def _is_blob(target: Path, folder: Path) -> bool:
    return target.parent.name == "blobs" and any(
        place.name == "snapshots" and place.parent == target.parent.parent
        for place in folder.parents
    )


def _stem(output: Path) -> str:
    """An output's name; of a file without its suffix, of a folder, which may have a dot, whole."""
    return output.name if output.is_dir() else output.stem


def _place(sidecar: Sidecar, output: Path) -> Path:
    stem = _stem(output)
    if sidecar.ending == sidecar.path.name:  # it was inside of a folder
        return (
            output / sidecar.ending
            if output.is_dir()
            else output.with_name(
                f"{stem}.md" if sidecar.ending == _README else f"{stem}.{sidecar.ending}"
            )
        )
    return output.with_name(f"{output.name if sidecar.whole else stem}{sidecar.ending}")


def _rewritten(document: dict, output: Path, note: Mapping[str, str]) -> bytes:
    changed = _without_hashes(document)
    assert isinstance(changed, dict)
    if isinstance(changed.get("file_name"), str):
        changed["file_name"] = _stem(output)
    if isinstance(changed.get("file_path"), str):
        changed["file_path"] = output.resolve().as_posix()
    changed.pop("size", None)
    changed["prolora"] = dict(note)
    return (json.dumps(changed, indent=2) + "\n").encode()


def _without_hashes(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: inner if key in _PICTURE_LISTS else _without_hashes(inner)
            for key, inner in value.items()
            if str(key).lower() not in _HASHES
        }
    return [_without_hashes(inner) for inner in value] if isinstance(value, list) else value


def _put(source: Path, content: bytes | None, place: Path) -> bool:
    """Write it; False when something else is there. What is there and the same is left alone."""
    if content is None:
        before, now = source.stat(), _status(place)
        same = now is not None and (now.st_size, now.st_mtime_ns) == (
            before.st_size,
            before.st_mtime_ns,
        )
        if now is not None:
            return same
        with open_regular(source) as file:
            if before.st_size > _LARGEST_COPIED:
                raise UnfitFile(errno.EFBIG, "found a file too large to be about an adapter")
            with atomic.atomic_path(place) as temporary, temporary.open("wb") as copy:
                shutil.copyfileobj(file, copy)
                copy.flush()
                os.utime(temporary, ns=(before.st_atime_ns, before.st_mtime_ns))
        return True
    if not place.exists():
        atomic.write_bytes(place, content)
        return True
    try:
        old = read_small(place)
    except OSError:  # a folder, a pipe, something large: none of it is an earlier copy
        return False
    if old == content:
        return True
    if not _is_ours(old):
        return False
    atomic.write_bytes(place, content)
    return True


def _is_ours(content: bytes) -> bool:
    try:
        document = parse_json(content)
    except BadDocument:
        return False
    return isinstance(document, dict) and "prolora" in document


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
