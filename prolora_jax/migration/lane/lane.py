"""The files of one table, batch after batch."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from prolora_jax.engines.progress import Progress
from prolora_jax.errors import BaseModelError, ProloraError
from prolora_jax.io.adapters.files import lacks_config
from prolora_jax.io.adapters.known_tables import look_at
from prolora_jax.io.containers.header_tables import HeaderTables
from prolora_jax.method.encoding import DTYPES, rank_class
from prolora_jax.migration.blocks import WIDTHS
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob
from prolora_jax.migration.lane.moving import Batch, move, projected
from prolora_jax.migration.lane.output import Output, largest_ranks, output_of, ranks_in_file
from prolora_jax.migration.lane.reading import Read, read
from prolora_jax.migration.lane.room import Closed, Rest, Rooms
from prolora_jax.migration.lane.table import Irregular, Table, key_of, table_of
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.placing import OperatorsOnDevices
from prolora_jax.plans.options import MigrationOptions

FEWEST = 8
"""Files of one table from which on a lane of their own is worth its programs."""

ROOMS = 2
"""Batches at a time: one is read while the other moves and is written."""

OUTPUTS = 16
"""Outputs of other ranks that a lane knows; each says of its modules what takes some 300 KB."""

READERS = max(1, min(4, (os.cpu_count() or 1)))
"""Threads that read, hash and measure files; all of it is work outside of Python."""

_TRIES = 3
"""Files that a table is worked out with, where the first ones are refused."""

_SUFFIXES = frozenset({".safetensors", ".sft"})


@dataclass
class LaneBatch:
    """Files of one lane that were read.

    Attributes:
        lane: theirs.
        batch: the numbers; None where no file could be read.
        odd: jobs that go the way of single files.
        unwritten: files that still are in the room.
    """

    lane: "Lane"
    batch: Batch | None
    odd: list[FileJob]
    unwritten: int = 0

    def move(self, placed: OperatorsOnDevices) -> list[tuple[Read, float]]:
        """Move all files.

        Args:
            placed: operators of the pair.

        Returns:
            The files that can be written, and each one's share of the time; others join `odd`.

        Raises:
            ProloraError: none of them can be moved; their room is free again.
        """
        if self.batch is None:
            return []
        started, batch = time.perf_counter(), self.batch
        try:
            self.lane.prepare(placed)
            move(batch, self.lane.ranks, placed)
            self.lane.tell_outputs(batch)
        except BaseException:
            self.lane.rooms.give_back(batch.room)
            raise
        share = (time.perf_counter() - started) / len(batch.files)
        self.odd += [batch.files[place].job for place in sorted(batch.odd)]
        good = [(read, share) for place, read in batch.files.items() if place not in batch.odd]
        self.unwritten = len(good)
        if not good:
            self.lane.rooms.give_back(batch.room)
        return good

    @property
    def jobs(self) -> list[FileJob]:
        """Of all its files."""
        read = () if self.batch is None else self.batch.files.values()
        return [*(one.job for one in read), *self.odd]

    def one_written(self) -> None:
        """Say that one file less is in the room; by the writing thread alone."""
        self.unwritten -= 1
        if not self.unwritten and self.batch is not None:
            self.lane.rooms.give_back(self.batch.room)


class Lane:
    """Files with one table of tensors.

    Args:
        table: theirs.
        path: of one of their outputs.
        jobs: how many there are, at most.
        writing: whether there may be outputs already.
        limit: bytes of input that a batch may hold.
        headers: tables that were seen.
        progress: called while operators are prepared.

    Raises:
        Irregular: there is no lane for them.
        ProloraError: nothing moves.
    """

    def __init__(
        self,
        table: Table,
        path: Path,
        jobs: int,
        pair: BasePair,
        writing: Writing,
        limit: int,
        headers: HeaderTables,
        progress: Progress | None = None,
    ):
        self._prepared, self._progress = False, progress
        self.table, self._writing, self._headers = table, writing, headers
        self._pair, self._path = pair, path
        self._outputs: dict[tuple[int, ...], Output] = {}
        self.ranks = largest_ranks(table)
        self.output = self._output(ranks_in_file(table, self.ranks))
        self.places = _places(table, jobs, limit)
        self.rooms = Rooms(table, self.places, ROOMS)
        self._rests: SimpleQueue[Rest] = SimpleQueue()
        for _ in range(READERS):
            self._rests.put(Rest(table))

    def prepare(self, placed: OperatorsOnDevices) -> None:
        """Have what the table's files need computed, by worker processes, too: once."""
        if not self._prepared:
            placed.prepare([pair for _, pair in projected(self.table, self.ranks)], self._progress)
            self._prepared = True

    def tell_outputs(self, batch: Batch) -> None:
        """Give files that have other ranks than most their own outputs; odd where there is none."""
        steps = range(len(self.ranks))
        for place in sorted(batch.files.keys() - batch.odd):
            made = (batch.factors.get((step, place)) for step in steps)
            own = ranks_in_file(self.table, [0 if one is None else one.rank for one in made])
            if own != self.output.ranks:
                try:
                    batch.outputs[place] = self._output(own)
                except (Irregular, ProloraError):
                    batch.odd.add(place)

    def _output(self, ranks: tuple[int, ...]) -> Output:
        if ranks not in self._outputs:
            if len(self._outputs) >= OUTPUTS:
                self._outputs.clear()
            given = ranks, self._pair, self._writing, self._path
            self._outputs[ranks] = output_of(self.table, *given)
        return self._outputs[ranks]

    def batches(self, jobs: Sequence[FileJob]) -> Iterator[LaneBatch]:
        """Read files, a room full at a time; ends early when the rooms are closed."""
        with ThreadPoolExecutor(READERS, "read") as threads:
            for start in range(0, len(jobs), self.places):
                some = jobs[start : start + self.places]
                try:
                    room = self.rooms.take()
                except Closed:
                    return

                def one(numbered: tuple[int, FileJob], room=room) -> Read | None:
                    if self.rooms.closed:  # nobody waits for the rest of the batch
                        return None
                    rest = self._rests.get()
                    try:
                        given = numbered[1], room, numbered[0], rest, self._writing
                        return read(*given, self._headers)
                    except Exception:  # noqa: BLE001 (the way of single files says what it is)
                        return None
                    finally:
                        self._rests.put(rest)

                found = list(threads.map(one, enumerate(some)))
                files = {one.file: one for one in found if one is not None}
                odd = [job for job, one in zip(some, found, strict=True) if one is None]
                if not files:
                    self.rooms.give_back(room)
                    yield LaneBatch(self, None, odd)
                    continue
                steps = len(self.table.plan.steps)
                yield LaneBatch(self, Batch(room, files, steps), odd)


def open_lane(
    jobs: Sequence[FileJob],
    pair: BasePair,
    options: MigrationOptions,
    writing: Writing,
    limit: int,
    headers: HeaderTables,
    progress: Progress | None = None,
) -> Lane | None:
    """A lane for files that are said to have one table; None where there is none for them.

    Args:
        jobs: of the files.
        pair: source and target.
        options: of the run.
        writing: formats.
        limit: bytes of input that a batch may hold.
        headers: tables that were seen.
        progress: called while bases are computed and compared.

    Raises:
        BaseModelError: a base model cannot be used.
    """
    if len(jobs) < FEWEST or not hasattr(os, "preadv") or not hasattr(os, "writev"):
        return None
    if any({job.source.suffix.lower(), job.output.suffix.lower()} - _SUFFIXES for job in jobs):
        return None
    for job in jobs[:_TRIES]:
        try:
            path = job.source.resolve()
            look = look_at(path, headers)
            if look is None:
                continue
            table = table_of(path, look, pair, options, progress)
            if writing.pair is None and lacks_config(table.header.adapter):
                return None  # each such file is told about
            given = pair, writing, limit, headers, progress
            return Lane(table, job.output, len(jobs), *given)
        except Irregular:
            return None
        except BaseModelError:
            raise
        except Exception:  # noqa: BLE001, PERF203 (the way of single files says what it is)
            continue
    return None


def table_name(job: FileJob, headers: HeaderTables) -> str | None:
    """A name for the table of a job's file, where files of one name may have a lane."""
    if job.table is not None or job.source.suffix.lower() not in _SUFFIXES:
        return job.table
    look = look_at(job.source, headers)
    return None if look is None else key_of(look)


def _places(table: Table, jobs: int, limit: int) -> int:
    """Files of a batch: whole blocks of the largest rank, within a limit of bytes."""
    rank = max((rank_class(kind.rank) for kind in table.sizes), default=WIDTHS[0])
    narrow, wide = (max(width // rank, 1) for width in WIDTHS)
    size = sum(
        moving * kind.rank * (kind.out + kind.width) * DTYPES[kind.dtype].itemsize
        for kind, (moving, _) in table.sizes.items()
    )
    fitting = max(limit // max(size, 1) // narrow, 1) * narrow
    return min(wide, -(-jobs // narrow) * narrow, fitting)
