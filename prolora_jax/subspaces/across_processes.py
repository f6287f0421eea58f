"""Subspaces over a mesh of several processes, for weights that are too many or too large for one.

The processes agree on one list first: all that any of their stores lacks. Each reads what its own
devices hold; what they have found goes from its owner to all, weight by weight, so that every store
ends with the same. Where a store has all of it, its process computes for the others.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Generator, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from prolora_jax.engines.prefetch import prefetch
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.method.basis import Basis
from prolora_jax.method.decomposition_on_devices import TallDecomposition
from prolora_jax.subspaces.on_devices import (
    DeviceBatch,
    Item,
    Parts,
    basis_of,
    columns_of,
    plan_batches,
    read_parts,
    start,
)
from prolora_jax.subspaces.on_host import Todo, compute_one
from prolora_jax.subspaces.together import Together

Wanted = tuple[Todo, Collection[str]]
"""All that is asked for, and which of it a store lacks."""


def across_processes(
    model: BaseModel, look: Callable[[], Wanted], mesh: Mesh
) -> tuple[int, Generator[tuple[str, Basis]]]:
    """The bases that the store of any process lacks, in all processes, which call this together.

    Args:
        model: the base model, which is the same in all of them.
        look: what is asked for and lacking here. What is asked for is the same everywhere.
        mesh: one axis, with devices of all processes.

    Returns:
        How many there are; fingerprint and basis of each, in the same order everywhere.

    Raises:
        UsageError: other weights are asked for elsewhere, or the mesh lacks a process.
        BaseModelError: a weight has NaN or infinite numbers.
        ProloraError: another process has failed.
    """
    together = Together(mesh)
    asked, missing = together.do(look)
    names = sorted(asked)
    told = json.dumps([(name, asked[name][1]) for name in names]).encode()
    digest = np.frombuffer(hashlib.sha256(told).digest(), np.uint8).astype(np.int32)
    if (together.all_say(digest) != digest).any():
        raise UsageError(
            f"{model.location}: found another list of weights in another process; expected the "
            "same base model, modules and rank rule in all; give all the same",
            code=Refusal.BAD_OPTION,
        )
    lacking = together.all_say(np.array([name in missing for name in names], np.bool_))
    todo = {names[i]: asked[names[i]] for i in np.flatnonzero(lacking.any(axis=0))}
    return len(todo), _computed(model, todo, mesh, together)


def _computed(
    model: BaseModel, todo: Todo, mesh: Mesh, together: Together
) -> Generator[tuple[str, Basis]]:
    unsafe: list[Item] = []
    batches = plan_batches(model, todo, mesh.size)
    ahead = prefetch((batch, read_parts(model, batch, mesh)) for batch in batches)

    def read() -> tuple[DeviceBatch, Parts]:
        return next(ahead)

    def found() -> Iterator[tuple[str, Basis]]:
        for _ in batches:
            batch, parts = together.do(read)
            started = start(batch, parts, mesh)
            del parts
            collect = _stack if batch.size else _rows
            for item, basis in collect(model, batch, started, together):
                if basis is None:
                    unsafe.append(item)
                else:
                    yield item.fingerprint, basis
        for first in range(0, len(unsafe), together.count):
            yield from _on_hosts(model, unsafe[first : first + together.count], together)

    try:
        for one in found():
            try:
                yield one
            except BaseException:
                # Whoever asked has stopped: its disk is full, or it was interrupted.
                together.give_up()
                raise
        together.do(lambda: None)
    finally:
        ahead.close()


def _stack(
    model: BaseModel, batch: DeviceBatch, found: TallDecomposition, together: Together
) -> Iterator[tuple[Item, Basis | None]]:
    """Weights of a stack, each from the process whose device has it."""
    owners = _owners(found.s)
    held = [_held(array) for array in found]
    for place, item in enumerate(batch.items):
        first, owner = next((f, own) for f, end, own in owners if f <= place < end)

        def make(item: Item = item, place: int = place, first: int = first) -> list[np.ndarray]:
            long, s, short = (np.asarray(parts[first])[place - first] for parts in held)
            k = columns_of(item, s)
            return [] if k is None else [long[:, :k], s, short]

        yield item, _basis(model, item, together.from_owner(owner, make))


def _rows(
    model: BaseModel, batch: DeviceBatch, found: TallDecomposition, together: Together
) -> Iterator[tuple[Item, Basis | None]]:
    """One weight: its short side from one process, and rows of its long side from each device."""
    (item,) = batch.items
    s, short = together.from_owner(
        0, lambda: [np.asarray(array.addressable_data(0)) for array in found[1:]]
    )
    k = columns_of(item, s)
    if k is None:
        yield item, None
        return
    held, rows = _held(found.long), batch.shape[0]
    long = np.empty((rows, k), np.float32)
    for first, end, owner in _owners(found.long):
        (part,) = together.from_owner(owner, lambda f=first: [np.asarray(held[f])[:, :k]])
        long[first:end] = part[: max(0, min(end, rows) - first)]
    yield item, _basis(model, item, [long, s, short])


def _on_hosts(
    model: BaseModel, items: Collection[Item], together: Together
) -> Iterator[tuple[str, Basis]]:
    """What devices cannot do safely: a weight by each process, at most."""
    mine = [item for place, item in enumerate(items) if place == together.index]
    made = together.do(lambda: [compute_one(model, item.path, item.rule) for item in mine])
    for owner, item in enumerate(items):
        yield item.fingerprint, Basis(*together.from_owner(owner, lambda: made[0]))


def _basis(model: BaseModel, item: Item, arrays: list[np.ndarray]) -> Basis | None:
    return basis_of(model, item, *arrays) if arrays else None


def _owners(array: jax.Array) -> list[tuple[int, int, int]]:
    """First and end of what each device has along the first axis, and whose device it is."""
    held = array.sharding.devices_indices_map(array.shape).items()
    spans = [(*index[0].indices(array.shape[0])[:2], d.process_index) for d, index in held]
    return sorted(spans)


def _held(array: jax.Array) -> dict[int, jax.Array]:
    """What this process's devices have of an array, by the first place along its first axis."""
    return {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
