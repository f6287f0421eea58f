"""All files of a batch through a method: copies as they lie, projections block by block."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from prolora_jax.adapters.formats.folding import ROUNDOFF
from prolora_jax.matching.pairs import ModulePair
from prolora_jax.method.encoding import HostFactors, rank_class
from prolora_jax.method.update_norms import from_grams, grams, in_pieces, pieces
from prolora_jax.migration.blocks import Factors, split_rows
from prolora_jax.migration.edges import MIDDLE, holds
from prolora_jax.migration.execute import IN_FLIGHT
from prolora_jax.migration.lane.output import Output
from prolora_jax.migration.lane.reading import Read
from prolora_jax.migration.lane.room import Room
from prolora_jax.migration.lane.table import Kind, Table
from prolora_jax.migration.placing import OperatorsOnDevices, Placed
from prolora_jax.migration.projecting import Block, Job, finished, started, used_columns
from prolora_jax.plans.plan import Action

_ups, _downs = partial(grams, side="up"), partial(grams, side="down")

_SURE = 0.95
"""Of the error that a dtype may make, up to which float32's own rounding does not decide."""


@dataclass
class Batch:
    """Files of one table in a room, and what became of them.

    Attributes:
        room: where the numbers are.
        files: what was read, by place in the room.
        steps: how many the plan has.
        odd: places of files that have to go the way of single files.
        squares: squared norm of each module of each file, `(modules, places)`.
        factors: up and down of each step's output, by (step, place).
        outputs: by place, of files whose ranks are not the largest ones.
        norms: `(steps, 2, places)`: of the updates in and out.
        kept: `(steps, places)`: share of the squared norm that the rank holds.
        energies: `(steps, places, 4)`: shares of the input's four blocks.
        still: of each step, what `rotation` left still.
        scales: `(modules, places)`.
        of_down: Gram matrices of `down` by kind, `(modules, places, rank, rank)`.
    """

    room: Room
    files: Mapping[int, Read]
    steps: int
    odd: set[int] = field(default_factory=set)
    factors: dict[tuple[int, int], HostFactors] = field(default_factory=dict)
    outputs: dict[int, Output] = field(default_factory=dict)
    still: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self):
        places = self.room.files
        self.squares = np.zeros((len(self.room.table.modules), places))
        self.scales = np.ones((len(self.room.table.modules), places))
        self.norms = np.zeros((self.steps, 2, places))
        self.kept = np.ones((self.steps, places))
        self.energies = np.zeros((self.steps, places, 4))
        self.of_down: dict[Kind, np.ndarray] = {}
        for place, read in self.files.items():
            self.scales[:, place] = read.scales
            for number, square in read.squares.items():
                self.squares[number, place] = square


def move(batch: Batch, ranks: Sequence[int], placed: OperatorsOnDevices) -> None:
    """Fill in what becomes of a batch.

    Args:
        batch: as it was read.
        ranks: of each step's output, at most; 0 where the method leaves nothing.
        placed: operators of the pair.

    Raises:
        BaseModelError: a base model cannot be read.
    """
    table = batch.room.table
    _measure(batch)
    _copy(batch, [i for i, step in enumerate(table.plan.steps) if step.action is Action.COPY])
    _clear(batch)
    pairs = {pair: number for number, pair in projected(table, ranks)}
    running: deque[tuple[int, int, Block]] = deque()
    for modules, on_device in placed.each(list(pairs)):
        number = pairs[modules]
        for start, block in _blocks(batch, number, on_device):
            running.append((number, start, block))
            if len(running) > IN_FLIGHT * placed.devices:
                _collect(batch, ranks[running[0][0]], *running.popleft())
    while running:
        _collect(batch, ranks[running[0][0]], *running.popleft())


def projected(table: Table, ranks: Sequence[int]) -> list[tuple[int, ModulePair]]:
    """The steps that are projected, and leave something: their numbers and modules."""
    return [
        (number, ModulePair(step.source_path, step.path))
        for number, step in enumerate(table.plan.steps)
        if step.action is not Action.COPY and ranks[number]
    ]


def _clear(batch: Batch) -> None:
    """Zeros in place of what is no file's, or odd: one NaN would end a whole block."""
    for place in {*range(max(batch.files) + 1)} - (batch.files.keys() - batch.odd):
        for factors in batch.room.factors.values():
            factors.up[:, place], factors.down[:, place] = 0, 0


def _measure(batch: Batch) -> None:
    """Norms of all modules that move, of all files; files with odd numbers are told."""
    numbers = _numbers(batch)
    for kind, factors in batch.room.factors.items():
        modules, places = factors.up.shape[:2]
        up, down = (a.reshape(modules * places, *a.shape[2:]) for a in (factors.up, factors.down))
        of_up, of_down = in_pieces(_ups, up), in_pieces(_downs, down)
        mine = np.array([m * places + p for m in range(modules) for p in sorted(batch.files)], int)
        found = np.zeros(modules * places)
        found[mine] = from_grams(
            of_up[mine], of_down[mine], lambda i, at=mine, u=up, d=down: (u[at[i]], d[at[i]])
        )
        good = np.isfinite(found) & (found > 0)
        if kind.dtype != "float16":
            good &= _in_the_middle(of_up, kind.out) & _in_the_middle(of_down, kind.width)
        good, found = good.reshape(modules, places), found.reshape(modules, places)
        batch.odd |= {p for p in batch.files if not good[:, p].all()}
        rows = [numbers[kind, m] for m in range(modules)]
        norms = np.abs(batch.scales[rows]) * np.sqrt(np.where(good, found, 0.0))
        batch.squares[rows] = norms**2
        batch.of_down[kind] = of_down.reshape(modules, places, *of_down.shape[1:])


def _in_the_middle(of_factors: np.ndarray, dim: int) -> np.ndarray:
    """Whether the largest number of a factor is certainly one that `edges` leaves as it is."""
    largest = np.einsum("nii->ni", of_factors.astype(np.float64)).max(axis=1)
    return (largest < 4.0 ** (MIDDLE - 1)) & (largest > 4.0 ** (1 - MIDDLE) * dim)


def _numbers(batch: Batch) -> dict[tuple[Kind, int], int]:
    modules = batch.room.table.modules
    return {(t.kind, t.place): i for i, t in enumerate(modules) if t.moves}


def _copy(batch: Batch, steps: Sequence[int]) -> None:
    """Factors of the steps that copy: as they lie, or with their scale in `up`."""
    table = batch.room.table
    owners = {n: table.by_path[table.plan.steps[n].source_path] for n in steps}
    kinds = {table.modules[number].kind for number in owners.values()}
    for kind in kinds:
        _fold_scales(batch, kind, {*owners.values()})
    for step, number in owners.items():
        trained = table.modules[number]
        factors = batch.room.factors[trained.kind]
        down, up = factors.down[trained.place], factors.up[trained.place]
        for place in batch.files.keys() - batch.odd:
            batch.factors[step, place] = HostFactors(down[place], up[place])
            batch.norms[step, :, place] = np.sqrt(batch.squares[number, place])


def _fold_scales(batch: Batch, kind: Kind, copied: set[int]) -> None:
    """Multiply `up` of the modules of a kind that are copied with their scales, where one has one.

    A file whose dtype does not hold the product to its own rounding is odd. The product takes the
    place of what was read, so that it needs no memory of its own until the file is written.
    """
    factors, numbers = batch.room.factors[kind], _numbers(batch)
    modules, places = factors.up.shape[:2]
    rows = [numbers[kind, m] for m in range(modules)]
    mine, files = [m for m in range(modules) if rows[m] in copied], sorted(batch.files)
    if (batch.scales[np.ix_([rows[m] for m in mine], files)] == 1.0).all():
        return
    flat = factors.up.reshape(modules * places, kind.out, kind.rank)
    scales = batch.scales[rows].astype(np.float32).reshape(-1)
    changed = np.repeat([m in {*mine} for m in range(modules)], places)
    lost = np.zeros((len(flat), *batch.of_down[kind].shape[2:]), np.float32)
    done = 0
    for piece in pieces(len(flat)):
        new = np.flatnonzero(changed[done : piece.stop]) + done
        done = piece.stop
        if len(new):
            stored = _scaled(flat[piece], scales[piece])
            cost = _lost(flat[piece], scales[piece], stored)
            stored, cost = jax.device_get((stored, cost))
            flat[new], lost[new] = stored[new - piece.start], cost[new - piece.start]
    lost = lost.reshape(batch.of_down[kind].shape)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.einsum("mpij,mpij->mp", lost.astype(np.float64), batch.of_down[kind])
        most = (_SURE * ROUNDOFF[kind.dtype]) ** 2 * batch.squares[rows]
        bad = ~(apart <= most)[mine]
    batch.odd |= {place for place in files if bad[:, place].any()}


def _each(one: Callable[..., jax.Array], *arrays: jax.Array | np.ndarray) -> jax.Array:
    """A function of the rows of some arrays; see `update_norms.grams`."""
    if jax.default_backend() == "cpu":
        return lax.map(lambda rows: one(*rows), arrays)
    return jax.vmap(one)(*arrays)


@jax.jit
def _scaled(ups: jax.Array | np.ndarray, scales: jax.Array | np.ndarray) -> jax.Array:
    """`up` times a scale, in its own dtype."""
    return _each(lambda up, s: (jnp.asarray(up, jnp.float32) * s).astype(ups.dtype), ups, scales)


@jax.jit
def _lost(
    ups: jax.Array | np.ndarray, scales: jax.Array | np.ndarray, stored: jax.Array
) -> jax.Array:
    """Gram matrices of what storing has cost.

    Not in the program of `_scaled`: XLA may leave out a cast there and back.
    """

    def one(up: jax.Array, scale: jax.Array, again: jax.Array) -> jax.Array:
        lost = jnp.asarray(again, jnp.float32) - jnp.asarray(up, jnp.float32) * scale
        return grams(lost[None], "up")[0]

    return _each(one, ups, scales, stored)


def _blocks(batch: Batch, number: int, placed: Placed) -> Iterator[tuple[int, Block]]:
    """Send one step of all files to its device, in blocks."""
    table, room = batch.room.table, batch.room
    step = table.plan.steps[number]
    owner = table.by_path[step.source_path]
    trained, own = table.modules[owner], table.plan.options.options_for(step.path)
    factors, rank = room.factors[trained.kind], rank_class(trained.kind.rank)
    count = max(batch.files) + 1
    for start, places in split_rows(count, rank):
        end = min(start + places, count)
        up, down = (
            _block(a[trained.place, start : start + places], places, rank, axis)
            for a, axis in ((factors.up, 2), (factors.down, 1))
        )
        scale = np.zeros(places, np.float32)
        scale[: end - start] = batch.scales[owner, start:end]
        jobs = [Job(place, step, trained.module) for place in range(start, end)]
        yield start, started(jobs, [0] * len(jobs), Factors(up, down, scale), placed, own)


def _block(array: np.ndarray, places: int, rank: int, axis: int) -> np.ndarray:
    """Factors of some files, filled up with zeros to a block."""
    missing = [(0, 0)] * 3
    missing[0], missing[axis] = (0, places - len(array)), (0, rank - array.shape[axis])
    return np.pad(array, missing) if any(width for _, width in missing) else array


def _collect(batch: Batch, rank: int, number: int, start: int, block: Block) -> None:
    """Wait for a block; what became of each file, or that it is odd; `rank` is the largest."""
    done = finished(block)
    # Not the device's own memory: that of many small results would not be given back as it came.
    down, up = batch.room.result(number, rank, done.made.up.dtype)
    if block.still is not None:
        batch.still[number] = block.still
    batch.norms[number, 0, start : start + len(block.jobs)] = done.before
    batch.norms[number, 1, start : start + len(block.jobs)] = done.after * np.abs(done.scale)
    batch.kept[number, start : start + len(block.jobs)] = done.kept
    for i, job in enumerate(block.jobs):
        place = job.owner
        if place not in batch.files or place in batch.odd:
            continue
        columns = used_columns(done.made.used[i], int(done.ranks[i]), block.compressed)
        new = HostFactors(done.made.down[i][columns], done.made.up[i][:, columns])
        norm = float(batch.norms[number, 1, place])
        if done.left_over[i] or not done.made.finite[i] or not holds(new, norm):
            batch.odd.add(place)
            continue
        batch.factors[number, place] = HostFactors(
            _kept(down[place], new.down), _kept(up[place], new.up)
        )
        batch.energies[number, place] = done.energies[i] / (done.energies[i].sum() or 1.0)


def _kept(room: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Numbers in a room for as many or more of them, as they stand in a file."""
    place = room.reshape(-1)[: found.size].reshape(found.shape)
    np.copyto(place, found)
    return place
