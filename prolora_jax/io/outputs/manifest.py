"""The manifest of an output folder: `OUT/manifest.sqlite`, one row per file of the catalog.

SQLite in WAL mode: one process writes (the run, which holds the folder's lock), any number read
meanwhile. A row says that an output is there only after it is there: rows are written behind
outputs, so that a run that is killed has at most done more than its manifest says. `synchronous =
NORMAL` loses no row when the process is killed; when the power fails the last rows may be missing,
and their files are done again.
"""

import csv
import io
import json
import os
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator
from dataclasses import fields
from math import inf
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec

from prolora_jax.errors import OutputError, Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.io.guarded import irregular
from prolora_jax.plans.catalog_record import FINISHED, CatalogRecord

NAME = "manifest.sqlite"
VERSION = 1
SAID = " said:"
_COLUMNS = tuple(f.name for f in fields(CatalogRecord))
_JSON = frozenset({"skipped", "flags"})
_BUSY_SECONDS = 30.0
# What makes a spreadsheet compute a cell of a table instead of showing it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# What rows that another program has changed can make of JSON and of records.
_ODD = (ValueError, TypeError, RecursionError, msgspec.MsgspecError)


class Proof(NamedTuple):
    """What a later run compares before it believes a record.

    Attributes:
        job: digest of options and base weights; None when it came to no plan.
        input_stamp: size and time of change of the input, when it was read, and what its header
            said (`SAID` and a digest); without that in older manifests and those of fleets.
        output_stamp: the same of the output, when it was written.
    """

    job: str | None = None
    input_stamp: str | None = None
    output_stamp: str | None = None


class ManifestRow(NamedTuple):
    """A record and its proof."""

    record: CatalogRecord
    proof: Proof


class Manifest:
    """An open manifest; safe to use from several threads.

    Args:
        out: the output folder.
        write: make it, and allow writing; the caller holds the folder's lock.

    Raises:
        UsageError: there is none, or none that can be read.
        OutputError: it cannot be made.
    """

    def __init__(self, out: Path, *, write: bool = False):
        self.out = out
        self.path = out / NAME
        self._lock = threading.Lock()
        if not write and not self.path.is_file():
            raise UsageError(
                f"{out}: found no {NAME}; expected a folder that `prolora migrate CATALOG/ --out` "
                "wrote; check the path",
                code=Refusal.MISSING_FILE,
            )
        try:
            if write:
                out.mkdir(parents=True, exist_ok=True)
                _require_plain(self.path)
            mode = "rwc" if write else "rw"
            self._db = _connected(self.path, mode)
            if write:
                self._create()
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        except (sqlite3.Error, UnicodeError, OSError) as failure:
            raise self._unusable(failure, write) from failure
        if version != VERSION:
            raise UsageError(
                f"{self.path}: found a manifest of version {version}; expected {VERSION}; use the "
                "version of prolora that wrote it, or another output folder",
                code=Refusal.BAD_REPORT,
            )

    def _create(self) -> None:
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if tables and version != VERSION:
            return  # of another version, or another program's: nothing in it is changed
        with self._db:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            if tables:
                return
            columns = ", ".join(c for c in _COLUMNS if c != "input")
            proofs = ", ".join(Proof._fields)
            self._db.execute(
                f"CREATE TABLE records (input TEXT PRIMARY KEY, {columns}, {proofs}) WITHOUT ROWID"
            )
            self._db.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID")
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Close it; what was written stays."""
        self._db.close()

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, *entries: ManifestRow) -> None:
        """Add records, or replace those of the same inputs, in one transaction.

        Raises:
            OutputError: the disk does not take them.
        """
        names = (*_COLUMNS, *Proof._fields)
        marks = ", ".join("?" * len(names))
        command = f"INSERT OR REPLACE INTO records ({', '.join(names)}) VALUES ({marks})"
        self._write(command, [_row(entry) for entry in entries])

    def remove(self, inputs: Iterable[str]) -> None:
        """Forget records."""
        self._write("DELETE FROM records WHERE input = ?", [(path,) for path in inputs])

    def set_facts(self, **facts: object) -> None:
        """Note facts about the run: anything that JSON can hold."""
        rows = [(name, json.dumps(value)) for name, value in facts.items()]
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)

    def facts(self) -> dict[str, Any]:
        """The facts about the run."""
        rows = self._read("SELECT * FROM facts")
        try:
            return {name: json.loads(text) for name, text in rows}
        except _ODD as failure:
            raise self._unusable(failure, write=False) from failure

    def records(self) -> Iterator[CatalogRecord]:
        """Every record, sorted by input path."""
        return (entry.record for entry in self.entries())

    def entries(self) -> Iterator[ManifestRow]:
        """Every record with its proof, sorted by input path."""
        names = ", ".join((*_COLUMNS, *Proof._fields))
        rows = self._read(f"SELECT {names} FROM records ORDER BY input")
        try:
            # All of them now: the error belongs to this call, not to whoever asks for the next.
            return iter([_entry(row) for row in rows])
        except _ODD as failure:
            raise self._unusable(failure, write=False) from failure

    def _read(self, command: str) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._db.execute(command).fetchall()
            except (sqlite3.Error, UnicodeError) as failure:
                raise self._unusable(failure, write=False) from failure

    def _write(self, command: str, rows: list[tuple[Any, ...]]) -> None:
        with self._lock:
            try:
                with self._db:
                    self._db.executemany(command, rows)
            except sqlite3.Error as failure:
                raise self._unusable(failure, write=True) from failure

    def _unusable(self, failure: Exception, write: bool) -> OutputError | UsageError:
        reason = " ".join(str(failure).split())
        if write and not _is_damage(failure):
            return OutputError(atomic.cannot_write(self.path, reason), code=Refusal.CANNOT_WRITE)
        return UsageError(
            f"{self.path}: cannot be read as a manifest ({reason}); expected what `prolora "
            "migrate` writes; remove it, or name another folder",
            code=Refusal.BAD_REPORT,
        )


def _require_plain(path: Path) -> None:
    """Refuse what the database library would follow or wait for.

    Raises:
        UsageError: a link is there, or no regular file.
    """
    if not os.path.lexists(path):
        return
    mode = path.lstat().st_mode
    found = "a link" if stat.S_ISLNK(mode) else irregular(mode)
    if found is not None:
        raise UsageError(
            f"{path}: found {found}; expected a manifest that `prolora migrate` wrote; remove it, "
            "or name another folder",
            code=Refusal.BAD_REPORT,
        )


def _is_damage(failure: Exception) -> bool:
    text = str(failure)
    return "not a database" in text or "malformed" in text or "no such table" in text


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, check_same_thread=False)


def _row(entry: ManifestRow) -> tuple[Any, ...]:
    values = []
    for name in _COLUMNS:
        value = getattr(entry.record, name)
        values.append(json.dumps(value) if name in _JSON else value)
    return (*values, *entry.proof)


def _entry(row: tuple[Any, ...]) -> ManifestRow:
    plain = dict(zip(_COLUMNS, row, strict=False))
    plain |= {name: json.loads(plain[name]) for name in _JSON}
    record = msgspec.convert(plain, CatalogRecord)
    endless = [name for name, value in plain.items() if value in (inf, -inf)]
    if endless:
        raise ValueError(f"its {endless[0]} is infinite")
    for name in ("output", "preview"):
        _require_below(name, getattr(record, name))
    if record.state in FINISHED and record.output is None:
        raise ValueError(f"{record.input} is {record.state} and has no output")
    proof = msgspec.convert(row[len(_COLUMNS) :], Proof)
    return ManifestRow(record, proof)


def _require_below(name: str, place: str | None) -> None:
    """Raise unless a path of a record is one below the output folder."""
    if place is None:
        return
    path = PurePosixPath(place)
    if "\0" in place or not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"its {name} {place[:80]!r} is no path below the folder")


def export(records: Iterable[CatalogRecord], path: Path) -> None:
    """Write records as a table: `.csv`, or one JSON object per line (`.jsonl`).

    In CSV, `skipped` and `flags` are JSON, and a text that a spreadsheet would take for a formula
    (it starts with `=`, `+`, `-`, `@`, a tab or a carriage return) has an apostrophe before it.

    Raises:
        UsageError: the name ends in neither.
        OutputError: it cannot be written.
    """
    formats = {".jsonl": _jsonl, ".csv": _csv}
    if path.suffix.lower() not in formats:
        raise UsageError(
            f"{path}: expected a name that ends in .jsonl or .csv", code=Refusal.BAD_OPTION
        )
    atomic.write_text(path, formats[path.suffix.lower()](records))


def _jsonl(records: Iterable[CatalogRecord]) -> str:
    return "".join(msgspec.json.encode(record).decode() + "\n" for record in records)


def _csv(records: Iterable[CatalogRecord]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for record in records:
        row = _row(ManifestRow(record, Proof()))[: len(_COLUMNS)]
        writer.writerow([_no_formula(cell) for cell in row])
    return text.getvalue()


def _no_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
