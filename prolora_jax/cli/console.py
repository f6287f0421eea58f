"""Where output goes: results on stdout, progress and errors on stderr."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from prolora_jax.errors import Refusal, UsageError

if TYPE_CHECKING:
    from prolora_jax.io.stores.basis_store import FolderStore


class _RateColumn(ProgressColumn):
    """How many a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        """The rate; empty until it is known."""
        return Text("" if task.speed is None else _rate(task.speed))


def _rate(speed: float) -> str:
    return f"{speed:.1f}/s" if speed >= 1 or speed == 0 else f"{1 / speed:.1f} s each"


def progress_line(stage: str, done: int, total: int, begun: int, seconds: float) -> str:
    """A line for a log: how far a stage is, how fast, and how long it will take.

    Args:
        stage: its name.
        done: so far.
        total: in all.
        begun: that were done when the clock started.
        seconds: since then.
    """
    line = f"{stage}: {done} of {total}"
    if done <= begun or seconds <= 0:
        return line
    speed = (done - begun) / seconds
    left = timedelta(seconds=round((total - done) / speed))
    return f"{line}, {_rate(speed)}, {left} left"


PLAIN_LINE_SECONDS = 10.0
"""How often progress prints a line where there is no terminal."""


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options that every command has.

    Attributes:
        store: folder of the basis store; or s3://bucket/prefix, gs://bucket/prefix or
            file:///folder, which hosts share and copy as they need it [default: $PROLORA_STORE,
            else the user's cache folder].
        store_limit: bytes that the store's folder on this host may have when the command is done,
            20GB or 500MB: what was not used for the longest time goes, but nothing that a running
            command uses. Workers of a fleet keep to it after each piece of work, on their hosts;
            what hosts share has no limit.
        json: print one JSON document on stdout and nothing else there.
        quiet: no progress.
        workers: processes that compute subspaces [default: one per core].
        config: YAML file with any of these options; the command line wins.
    """

    store: str | None = None
    store_limit: str | None = None
    json: Annotated[bool, Parameter(negative="")] = False
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")] = False
    workers: int | None = None
    config: Path | None = None

    def __post_init__(self):
        """Note that JSON is wanted, wherever that was said: `--config` may say it, too."""
        if self.json:
            Answer.wanted = True

    @property
    def processes(self) -> int:
        """Number of worker processes.

        Raises:
            UsageError: when fewer than one was asked for.
        """
        if self.workers is not None and self.workers < 1:
            raise UsageError(
                f"--workers {self.workers}: expected 1 or more", code=Refusal.BAD_OPTION
            )
        return self.workers or len(os.sched_getaffinity(0))

    def basis_store(self, *, keeps: bool = True) -> "FolderStore":
        """The basis store at the chosen place; `close_stores` closes it.

        Args:
            keeps: whether subspaces and operators that are computed now stay.

        Raises:
            UsageError: the limit is no number of bytes, or the place cannot be meant.
        """
        from prolora_jax.io.stores.basis_store import FolderStore
        from prolora_jax.io.stores.store_address import store_address

        limit = None if self.store_limit is None else number_of_bytes(self.store_limit)
        folder, shared = store_address(self.store)
        store = FolderStore(folder, keeps=keeps, limit=limit, shared=shared)
        _opened.append(store)
        return store

    def local_store(self) -> "FolderStore":
        """The basis store, for what looks at a folder.

        Raises:
            UsageError: as `basis_store`, or hosts share the place.
        """
        store = self.basis_store()
        if store.address.shared is not None:
            raise UsageError(
                f"--store {store.address.shown}: found a place that hosts share; expected a local "
                "folder, which this command looks at or measures; name one",
                code=Refusal.BAD_OPTION,
            )
        return store


_opened: "list[FolderStore]" = []


def close_stores() -> None:
    """Close every store that this command has opened."""
    while _opened:
        _opened.pop().close()


def number_of_bytes(text: str) -> int:
    """Bytes as people write them: 500MB, 20GB, 1.5GiB, 1000000.

    Raises:
        UsageError: it is no such number.
    """
    found = _BYTES.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"--store-limit {text}: expected a number of bytes, such as 20GB or 500MB",
            code=Refusal.BAD_OPTION,
        )
    number, prefix, binary = found.groups()
    power = " KMGT".index((prefix or " ").upper())
    return int(float(number) * (1024 if binary else 1000) ** power)


_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])?(i)?B?", re.IGNORECASE)


class PlainConsole(Console):
    """A console that shows text as it stands: no markup, no emoji codes, no control characters.

    File names, module names and messages come from the world, and every string that is shown,
    cells and titles of tables too, passes through `render_str`.
    """

    def __init__(self, **how: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        """The text without what steers terminals; lines stay lines."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **how)


def out() -> Console:
    """Console for results; wide enough for tables when it is not a terminal."""
    return PlainConsole(width=None if sys.stdout.isatty() else 180)


def err() -> Console:
    """Console for progress and errors."""
    return PlainConsole(stderr=True, soft_wrap=True)


def prepare_streams() -> None:
    """Characters that the console's encoding lacks are escaped, and end no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Answer:
    """Whether this run of the command line is to print a JSON document, and whether it has."""

    wanted = False
    given = False


def write_json(document: object) -> None:
    """One JSON document on stdout, in ASCII; numbers that JSON lacks are null."""
    import msgspec

    plain = _finite(msgspec.to_builtins(document, str_keys=True))
    write_json_text(json.dumps(plain, separators=(",", ":"), allow_nan=False))


def write_json_text(text: str) -> None:
    """A document that is JSON already; what is not ASCII in it is escaped."""
    Answer.given = True
    sys.stdout.write(_NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text) + "\n")


_NOT_ASCII = re.compile("[^\\x00-\\x7f]")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def printable(text: str) -> str:
    """One line of what a file says, without the control characters that steer terminals."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def show_error(message: str) -> None:
    """One line on stderr."""
    err().print(f"error: {' '.join(message.split())}", style="bold red")


class Reporter:
    """Shows progress of one stage after another: bars on a terminal, plain lines elsewhere."""

    def __init__(self, quiet: bool):
        self._console = err()
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last = 0.0
        self._begun: dict[str, tuple[int, float]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` are done in `stage`."""
        if self._quiet:
            return
        if self._bars is not None:
            task = self._tasks.get(stage)
            if task is None:
                task = self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(task, completed=done, total=total)
            return
        now = time.monotonic()
        if stage not in self._begun:
            self._begun[stage], self._last = (done, now), now
        if now - self._last > PLAIN_LINE_SECONDS:
            self._last = now
            begun, start = self._begun[stage]
            self._console.print(progress_line(stage, done, total, begun, now - start))

    @contextmanager
    def shown(self) -> Iterator["Reporter"]:
        """Show bars while the block runs, if this is a terminal."""
        if self._quiet or not self._console.is_terminal:
            yield self
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as self._bars:
            yield self
        self._bars = None
