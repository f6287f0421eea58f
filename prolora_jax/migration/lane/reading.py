"""One file into its place in the blocks, looked at, hashed and measured."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from math import frexp, sqrt
from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.io.adapters.known_tables import fill, look_at
from prolora_jax.io.containers.header_tables import HeaderTables
from prolora_jax.method.update_norms import squared_norms
from prolora_jax.migration.edges import MIDDLE
from prolora_jax.migration.files import Writing, refuse_outputs
from prolora_jax.migration.jobs import FileJob, for_job
from prolora_jax.migration.lane.room import Rest, Room
from prolora_jax.migration.lane.table import Table, key_of


class Read(NamedTuple):
    """A file in a room.

    Attributes:
        job: what is to be done with it.
        file: its place in the room.
        adapter: the file without its modules.
        scales: `alpha / rank` of each module of the table.
        fingerprint: of its content, as `Adapter.fingerprint`.
        squares: squared norm of each module that does not move, by number.
        seconds: that this took.
    """

    job: FileJob
    file: int
    adapter: Adapter
    scales: np.ndarray
    fingerprint: str
    squares: Mapping[int, float]
    seconds: float


def read(
    job: FileJob, room: Room, file: int, rest: Rest, writing: Writing, headers: HeaderTables
) -> Read | None:
    """Read a file into a place of a room.

    Args:
        job: what is to be done with it.
        room: for files of its table.
        file: its place there.
        rest: room of this thread.
        writing: whether there may be an output already.
        headers: tables that were seen.

    Returns:
        None where the file is odd: one of another table, or that cannot be read as it is.

    Raises:
        ProloraError: its output may not be written.
        OSError: the disk does not give it.
    """
    started, table = time.perf_counter(), room.table
    refuse_outputs(job.source, job.output, for_job(job, writing))
    path = job.source.resolve()  # reports name it, and are read from other folders
    look = look_at(path, headers)
    if look is None or key_of(look) != table.key:
        return None
    views = room.views(file, rest)
    if not fill(path, look, views):
        return None
    alphas = _alphas(table, rest)
    if alphas is None:
        return None
    told = np.array([alpha is not None for alpha in alphas])
    scales = np.where(told, np.array(alphas, float), 1.0) / np.where(told, table.ranks, 1)
    if any(abs(frexp(scale)[1]) > MIDDLE for scale in {*scales.tolist()}):
        return None
    squares = _measured(table, rest, scales)
    if squares is None:
        return None
    adapter = replace(table.header.adapter, metadata=dict(look.metadata), origin=str(path))
    found = fingerprint(table, views, alphas)
    return Read(job, file, adapter, scales, found, squares, time.perf_counter() - started)


def _alphas(table: Table, rest: Rest) -> list[float | None] | None:
    """What each module's scale is over its rank; None where one is odd."""
    alphas = [trained.module.alpha for trained in table.modules]
    if table.alphas is None:
        return alphas
    if table.fixed is not None and rest.alphas.tobytes() != table.fixed:
        return None
    numbers = rest.alphas.view(table.alphas).astype(np.float64)
    if not np.isfinite(numbers).all() or not numbers.all():
        return None
    owners = (number for number, side, _ in table.pieces if side == "alpha")
    for number, alpha in zip(owners, numbers.tolist(), strict=True):
        alphas[number] = alpha
    return alphas


def _measured(table: Table, rest: Rest, scales: np.ndarray) -> dict[int, float] | None:
    """Squared norms of what does not move; None where a number is none."""
    places = {(t.kind, t.place): i for i, t in enumerate(table.modules) if not t.moves}
    found: dict[int, float] = {}
    for kind, factors in rest.factors.items():
        squares = squared_norms(factors.up[:, 0], factors.down[:, 0])
        if not np.isfinite(squares).all() or not squares.all():
            return None
        for place, square in enumerate(squares.tolist()):
            number = places[kind, place]
            # As a norm, and squared again: that is how single files have it.
            norm = abs(float(scales[number])) * sqrt(square)
            found[number] = norm * norm
    return found


def fingerprint(table: Table, views: Sequence[memoryview], alphas: Sequence[float | None]) -> str:
    """`Adapter.fingerprint` of a file: of its modules in the order of their paths.

    Args:
        table: of the file.
        views: its tensors, in the order of the file.
        alphas: of the modules.
    """
    digest = sha256()
    for number, path, ((of_down, down), (of_up, up)) in table.hashed:
        digest.update(f"{path} {alphas[number]}".encode() + of_down)
        digest.update(views[down])
        digest.update(of_up)
        digest.update(views[up])
    return digest.hexdigest()
