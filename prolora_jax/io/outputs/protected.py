"""Files that no output may replace: what a run reads, told by identity whatever the name."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prolora_jax.errors import Refusal, UsageError

Identity = tuple[int, int]
"""Device and inode: the same for every link, hard or soft, and every spelling of a path."""


class Protected:
    """What is read by a run: adapters and base models.

    Args:
        paths: files and folders, with all that is in these; what is not on the disk (the id of a
            model on the hub) is passed over.
    """

    def __init__(self, paths: Iterable[str | Path]):
        self._shown: dict[Identity, Path] = {}
        for path in paths:
            for place in with_content(Path(path)):
                identity = _identity(place)
                if identity is not None:
                    self._shown.setdefault(identity, place)

    def replaced_by(self, places: Iterable[Path]) -> Path | None:
        """The protected file that outputs at some places would replace; None where there is none.

        Args:
            places: files or folders, there or not yet.
        """
        identities = (_identity(place) for place in places)
        return next(
            (self._shown[i] for i in identities if i is not None and i in self._shown), None
        )


def refuse_replacing(output: Path, places: Iterable[Path], read: Iterable[str | Path]) -> None:
    """Check that an output replaces nothing that is read for it.

    Args:
        output: its name, for messages.
        places: what is written: the output itself, or files in it.
        read: adapters and base models.

    Raises:
        UsageError: it would; `--overwrite` is for earlier outputs.
    """
    found = Protected(read).replaced_by(places)
    if found is not None:
        raise UsageError(f"{output}: {would_replace(found)}", code=Refusal.OUTPUT_EXISTS)


def require_ending(output: Path | None, ending: str) -> None:
    """Check that a page, picture or table is named as one: by that it replaces nothing else.

    These are written again without being asked for, so their names must not be an adapter's, a
    base model's or a manifest's.

    Args:
        output: its name; None where none is wanted.
        ending: that of its kind, `.png`.

    Raises:
        UsageError: the name has another ending.
    """
    if output is not None and output.suffix.lower() != ending:
        raise UsageError(
            f"{output}: found a name that ends in {output.suffix or 'no suffix'}; expected one "
            f"that ends in {ending}, which no adapter and no base model has; choose another",
            code=Refusal.BAD_OPTION,
        )


def with_content(output: Path) -> Iterator[Path]:
    """An output, and all that is in it when it is a folder."""
    yield output
    for folder, folders, files in os.walk(output):
        yield from (Path(folder, name) for name in (*folders, *files))


def would_replace(found: Path) -> str:
    """Why an output is not written, for messages."""
    return (
        f"would replace {found}, which is read for it; expected another name, also with "
        f"--overwrite; choose one"
    )


def _identity(path: Path) -> Identity | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
