"""The files of a store: when they were last used, and how those that are not needed go."""

import os
import re
import stat
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prolora_jax.io.atomic import TEMPORARY_SUFFIX
from prolora_jax.io.guarded import open_regular

DAY, MINUTE = 86400.0, 60.0
_LEFTOVER_SECONDS = 3600.0
"""Age from which a temporary file belongs to a run that was killed, not to one that goes on."""


_SMALL = 2**20
_STORED = re.compile(r"^[0-9a-f]{32}\.v\d+\.")


@dataclass(frozen=True)
class Keep:
    """Which whole files of a store stay: all of them, unless something is said.

    Attributes:
        weights: fingerprints; files of these weights alone stay.
        days: files stay that were used in so many days, whatever their weights.
    """

    weights: frozenset[str] | None = None
    days: float | None = None

    def stays(self, path: Path, *weights: str) -> bool:
        """Whether a file of these weights stays."""
        if self.weights is None and self.days is None:
            return True
        wanted = self.weights is not None and self.weights.issuperset(weights)
        return wanted or (self.days is not None and days_unused(path) <= self.days)


def mark_used(path: Path, every: float = DAY) -> None:
    """Note that a file was used, by its modification time, at most once a day.

    Access times would say it, but many file systems do not keep them, and listing the store
    would count as a use.

    Args:
        path: the file.
        every: seconds, where a day is too long.
    """
    with suppress(OSError):  # the store may be for reading only
        if days_unused(path) * DAY > every:
            os.utime(path)


def will_be_read(path: Path) -> None:
    """Have the system read a file into its cache, in large pieces and without waiting for it.

    Page by page, as a mapped file is touched, a disk gives half of what it gives in one go.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError), open_regular(path) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def days_unused(path: Path) -> float:
    """Days since a file was written or used, to the day."""
    return (time.time() - path.stat().st_mtime) / DAY


def delete(
    folder: Path, names: re.Pattern[str], kept: Container[Path], *, dry_run: bool
) -> tuple[int, int]:
    """Delete a store's files, and what killed runs have left.

    Args:
        folder: where; its folders are left alone.
        names: what the store's files are called, of any version; nothing else is touched.
        kept: files that stay.
        dry_run: count only.

    Returns:
        Number of files and bytes.
    """
    files = size = 0
    for path in sorted(folder.glob("*")):
        with suppress(FileNotFoundError):  # another process may delete it, too
            status = path.lstat()  # of a link itself, wherever it leads
            if path in kept or stat.S_ISDIR(status.st_mode):
                continue
            if not (names.fullmatch(path.name) or _is_leftover(path.name, status)):
                continue
            files, size = files + 1, size + status.st_size
            if not dry_run:
                path.unlink()
    return files, size


def evict(store: Path, limit: int, used: Container[str]) -> tuple[int, int]:
    """Delete files of a store until it is within a limit: the least recently used ones first.

    Large files go before small ones: a comparison or a table of dot products is hardly any room,
    and saves hours.

    Args:
        store: its folder.
        limit: bytes that may stay.
        used: names below the store that stay, whatever the limit.

    Returns:
        Number of files and bytes that went.
    """
    found: list[tuple[bool, float, int, Path]] = []
    for path in store.rglob("*"):
        with suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and _STORED.search(path.name):
                small = status.st_size < _SMALL
                found.append((small, status.st_mtime, status.st_size, path))
    over = sum(size for _, _, size, _ in found) - limit
    files = gone = 0
    for _, _, size, path in sorted(found):
        if gone >= over:
            break
        if path.relative_to(store).as_posix() not in used:
            with suppress(OSError):
                path.unlink()
                files, gone = files + 1, gone + size
    return files, gone


def _is_leftover(name: str, status: os.stat_result) -> bool:
    old = time.time() - status.st_mtime > _LEFTOVER_SECONDS
    return name.endswith(TEMPORARY_SUFFIX) and old
