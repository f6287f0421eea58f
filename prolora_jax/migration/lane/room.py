"""Blocks that files are read into, used again and again.

Modules that move lie module by module, the files of a batch side by side: a block is what the
device gets, as it is. The others are read to be hashed and measured only, one file over the other.
What a method makes of a module takes its place, where it has the same shape and dtype.
"""

import mmap
from collections import Counter
from queue import SimpleQueue
from threading import Lock

import numpy as np

from prolora_jax.method.encoding import DTYPES
from prolora_jax.migration.lane.table import Kind, Table

_ALIGNED = 64
"""Bytes. XLA takes numbers as they lie at multiples of it, and copies others."""


class Stacks:
    """Factors of some modules of one kind, of some files.

    Attributes:
        up: `(modules, files, out, rank)`.
        down: `(modules, files, rank, width)`.
    """

    def __init__(self, kind: Kind, modules: int, files: int):
        dtype = DTYPES[kind.dtype]
        self.up = _empty((modules, files, kind.out, kind.rank), dtype)
        self.down = _empty((modules, files, kind.rank, kind.width), dtype)

    def view(self, side: str, module: int, file: int) -> memoryview:
        """The bytes of one factor."""
        array = (self.up if side == "up" else self.down)[module, file]
        return array.reshape(-1).view(np.uint8).data


class Rest:
    """Room for what does not move of one file; a thread's own.

    Attributes:
        factors: by kind, of one file.
        alphas: the bytes of the tensors that say scales, in the order of the file.
        views: where each tensor of the file goes; None for those that move.
    """

    def __init__(self, table: Table):
        self.factors = {k: Stacks(k, still, 1) for k, (_, still) in table.sizes.items() if still}
        self.alphas = np.zeros(sum(p.size for p in table.pieces if p.side == "alpha"), np.uint8)
        self.views: list[memoryview | None] = []
        at = 0
        for number, side, size in table.pieces:
            trained = table.modules[number]
            if side == "alpha":
                self.views.append(self.alphas[at : at + size].data)
                at += size
            elif trained.moves:
                self.views.append(None)
            else:
                self.views.append(self.factors[trained.kind].view(side, trained.place, 0))


class Room:
    """Room for the files of one batch.

    Args:
        table: of the files.
        files: how many there is room for.
    """

    def __init__(self, table: Table, files: int):
        self.table, self.files = table, files
        self.factors = {
            kind: Stacks(kind, moving, files) for kind, (moving, _) in table.sizes.items() if moving
        }
        self._views: dict[int, list[memoryview | None]] = {}
        self._uses = Counter(step.source_path for step in table.plan.steps)
        self._made: dict[int, Stacks] = {}

    def result(self, step: int, rank: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Where a projected step's output goes: `down` and `up` of all files.

        Args:
            step: its number; what the device was given of its module is needed no longer.
            rank: of the output.
            dtype: of the output.
        """
        path = self.table.plan.steps[step].source_path
        trained = self.table.modules[self.table.by_path[path]]
        kind = trained.kind._replace(rank=rank, dtype=dtype.name)
        stacks, place = self.factors[trained.kind], trained.place
        if kind != trained.kind or self._uses[path] > 1:
            if step not in self._made:
                self._made[step] = Stacks(kind, 1, self.files)
            stacks, place = self._made[step], 0
        return stacks.down[place], stacks.up[place]

    def views(self, file: int, rest: Rest) -> list[memoryview]:
        """Where each tensor of a file goes, in the order of the file.

        Args:
            file: its place in the room.
            rest: for what does not move.
        """
        if file not in self._views:
            self._views[file] = [self._view(*piece[:2], file) for piece in self.table.pieces]
        both = zip(self._views[file], rest.views, strict=True)
        found = (theirs if mine is None else mine for mine, theirs in both)
        return [view for view in found if view is not None]

    def _view(self, number: int, side: str, file: int) -> memoryview | None:
        trained = self.table.modules[number]
        if side == "alpha" or not trained.moves:
            return None
        return self.factors[trained.kind].view(side, trained.place, file)


class Closed(Exception):
    """Raised by `Rooms.take` when nobody wants another batch."""


class Rooms:
    """Some rooms of one table: taken to be read into, given back when all is written.

    Args:
        table: of the files.
        files: that each has room for.
        rooms: how many there are.
    """

    def __init__(self, table: Table, files: int, rooms: int):
        self._table, self._files, self._unmade = table, files, rooms
        self._free: SimpleQueue[Room | None] = SimpleQueue()
        self._lock = Lock()
        self.closed = False

    def take(self) -> Room:
        """A free room; waits for one.

        Raises:
            Closed: there will be none.
        """
        with self._lock:
            made = self._unmade > 0 and self._free.empty()
            self._unmade -= made
        room = Room(self._table, self._files) if made else self._free.get()
        if room is None:
            self.close()  # for whoever waits, too
            raise Closed
        return room

    def give_back(self, room: Room) -> None:
        """A room whose files are written."""
        self._free.put(room)

    def close(self) -> None:
        """Have everybody who waits for a room, or will, go on without one."""
        self.closed = True
        self._free.put(None)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at a place that XLA takes as it is."""
    size = int(np.prod(shape)) * dtype.itemsize
    # Private: shared pages would be missing from what is known of a process's own memory.
    pages = mmap.mmap(-1, max(size, _ALIGNED), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    place = np.frombuffer(pages, np.uint8)
    return place[:size].view(dtype).reshape(shape)
