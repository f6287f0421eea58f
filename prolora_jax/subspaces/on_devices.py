"""Subspaces computed on devices: weights of one shape in stacks, very large ones by their rows.

While the devices work on one stack, a thread reads the next one from the checkpoint, and the
results of the one before go to the host. Where the mesh is of several processes, see
`across_processes.py`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from prolora_jax.engines.prefetch import prefetch
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.method.basis import Basis, BasisRule
from prolora_jax.method.decomposition import gram_is_safe
from prolora_jax.method.decomposition_on_devices import (
    TallDecomposition,
    along,
    decompose_rows,
    decompose_stack,
    padded_rows,
    safe_ratio,
)
from prolora_jax.subspaces.on_host import NOBODY, Others, Todo, finite_matrix

STACK_BYTES = 256 * 2**20
"""Float32 weights in one stack for each device; working on them takes about ten times as much."""

ROWS_BYTES = 2**30
"""A weight with more bytes than this in float32 is spread over the devices by its rows."""

FLOAT32_BYTES = 4
_PIECE_BYTES = 64 * 2**20
"""Of a wide weight that is spread by its columns, read at a time."""

Parts = dict[tuple[int, int], np.ndarray]
"""Arrays by the range of the first axis that they are."""


class Item(NamedTuple):
    """One basis to compute."""

    fingerprint: str
    path: str
    rule: BasisRule


class DeviceBatch(NamedTuple):
    """What one device call decomposes.

    Attributes:
        items: weights whose matrices are all `(long, short)` or its transpose.
        shape: `(long, short)`.
        size: weights in the call, counting the zero matrices that fill it up; 0: one weight,
            by its rows.
    """

    items: tuple[Item, ...]
    shape: tuple[int, int]
    size: int


def accelerators() -> Mesh | None:
    """All accelerators of this process, None where JAX has only the CPU. Starts JAX's backend."""
    if jax.default_backend() == "cpu":
        return None
    return Mesh(np.array(jax.local_devices()), ("devices",))


def on_devices(
    model: BaseModel, todo: Todo, mesh: Mesh, others: Others = NOBODY
) -> Iterator[tuple[str, Basis | None]]:
    """Each weight's basis by its fingerprint, from the devices of a mesh with one axis.

    Args:
        model: the base model.
        todo: what to compute.
        mesh: devices of this process; float64 unless they are TPUs (see
            `decomposition_on_devices`).
        others: who may have computed some meanwhile, which are then left out.

    Yields:
        Fingerprint and basis; None for a basis when the Gram route is not safe for the columns
        that its rule asks for (see `decomposition.decompose`): compute that one on the host.

    Raises:
        BaseModelError: when a weight has NaN or infinite numbers.
    """
    batches = _left(plan_batches(model, todo, mesh.size), others)
    running: tuple[DeviceBatch, TallDecomposition] | None = None
    for batch, parts in prefetch((batch, read_parts(model, batch, mesh)) for batch in batches):
        started = start(batch, parts, mesh)
        if running is not None:
            yield from _collect(model, *running)
        running = batch, started
        del parts
    if running is not None:
        yield from _collect(model, *running)


def _left(batches: list[DeviceBatch], others: Others) -> Iterator[DeviceBatch]:
    """What others do not have when its turn comes; of the same size, for which all is compiled."""
    for batch in batches:
        items = tuple(item for item in batch.items if not others.have(item.fingerprint))
        if items:
            yield batch._replace(items=items)


def start(batch: DeviceBatch, parts: Parts, mesh: Mesh) -> TallDecomposition:
    """Have the devices decompose a batch, in float64 unless they are TPUs; does not wait for them.

    Args:
        batch: what.
        parts: of `read_parts`.
        mesh: one axis.
    """
    shape = _spread_shape(batch, mesh)
    tall = jax.make_array_from_callback(
        shape, along(mesh), lambda index: parts[_range(index, shape)]
    )
    with jax.enable_x64(mesh.devices.flat[0].platform != "tpu"):
        return decompose_stack(tall, mesh) if batch.size else decompose_rows(tall, mesh)


def plan_batches(model: BaseModel, todo: Todo, devices: int) -> list[DeviceBatch]:
    """Group what is to be done by shape, in calls of as equal size as the byte budget allows."""
    by_shape: dict[tuple[int, int], list[Item]] = {}
    for fingerprint, (path, rule) in todo.items():
        short, long = sorted(model.spec.modules[path].matrix_shape)
        by_shape.setdefault((long, short), []).append(Item(fingerprint, path, rule))
    batches = []
    for shape, items in by_shape.items():
        weight = FLOAT32_BYTES * shape[0] * shape[1]
        if weight > ROWS_BYTES:
            batches += [DeviceBatch((item,), shape, 0) for item in items]
            continue
        most = max(STACK_BYTES // weight, 1) * devices
        calls = -(-len(items) // most)
        # One size for all calls of a shape: each size is compiled anew.
        size = -(-len(items) // (calls * devices)) * devices
        batches += [
            DeviceBatch(tuple(items[i : i + size]), shape, size) for i in range(0, len(items), size)
        ]
    return batches


def read_parts(model: BaseModel, batch: DeviceBatch, mesh: Mesh) -> Parts:
    """What the devices of this process hold of a batch; of no other weight or row is more read.

    Args:
        model: the base model.
        batch: what is to be decomposed.
        mesh: one axis; its devices may be of several processes.

    Returns:
        Tall float32 arrays, `(weights, long, short)` or rows `(rows, short)`.

    Raises:
        BaseModelError: when a weight has NaN or infinite numbers.
    """
    shape = _spread_shape(batch, mesh)
    held = along(mesh).addressable_devices_indices_map(shape).values()
    parts = {
        part: np.zeros((part[1] - part[0], *shape[1:]), np.float32)
        for part in (_range(index, shape) for index in held)
    }
    if not batch.size:
        _read_rows(model, batch.items[0].path, parts)
        return parts
    for (first, end), stack in parts.items():
        for place, item in zip(stack, batch.items[first:end], strict=False):  # zeros fill it up
            matrix = finite_matrix(model, item.path)
            place[:] = matrix.T if _is_wide(model, item.path) else matrix
    return parts


def _read_rows(model: BaseModel, path: str, parts: Parts) -> None:
    """Fill in rows of one tall weight; those beyond its end stay zeros."""
    out, width = model.spec.modules[path].matrix_shape
    if out >= width:
        for (first, end), rows in parts.items():
            if first < out:
                found = finite_matrix(model, path, (first, min(end, out)))
                rows[: len(found)] = found
        return
    # Its rows are columns of what is stored: all of it is read, and little of it held.
    step = max(1, _PIECE_BYTES // (FLOAT32_BYTES * width))
    for start_row in range(0, out, step):
        stop = min(start_row + step, out)
        piece = finite_matrix(model, path, (start_row, stop)).T
        for (first, end), rows in parts.items():
            found = piece[first:end]
            rows[: len(found), start_row:stop] = found


def _spread_shape(batch: DeviceBatch, mesh: Mesh) -> tuple[int, ...]:
    """Shape of the array that is spread over the devices by its first axis."""
    long, short = batch.shape
    return (batch.size, long, short) if batch.size else (padded_rows(long, mesh), short)


def _range(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> tuple[int, int]:
    """First and end of what a device holds along the first axis."""
    assert index is not None  # a device of the mesh
    first, end, _ = index[0].indices(shape[0])
    return first, end


def _is_wide(model: BaseModel, path: str) -> bool:
    rows, columns = model.spec.modules[path].matrix_shape
    return rows < columns


def _collect(
    model: BaseModel, batch: DeviceBatch, found: TallDecomposition
) -> Iterator[tuple[str, Basis | None]]:
    """Wait for a batch and take it apart, weight by weight."""
    long, s, short = (np.asarray(array) for array in found)
    if not batch.size:
        long, s, short = long[None, : batch.shape[0]], s[None], short[None]
    for i, item in enumerate(batch.items):
        yield item.fingerprint, basis_of(model, item, long[i], s[i], short[i])


def columns_of(item: Item, s: np.ndarray) -> int | None:
    """How many columns to keep of a weight with these singular values; None: it is not safe."""
    k = item.rule.retained(s.astype(np.float64))
    return k if gram_is_safe(s.astype(np.float64), k, safe_ratio(s)) else None


def basis_of(
    model: BaseModel, item: Item, long: np.ndarray, s: np.ndarray, short: np.ndarray
) -> Basis | None:
    """The basis of one weight, from its decomposition on the host; None: it is not safe."""
    k = columns_of(item, s)
    if k is None:
        return None
    # Copies: a store in memory would otherwise keep the whole stack for the sake of a part.
    left, right = long[:, :k].copy(), short.copy()
    if _is_wide(model, item.path):
        left, right = right, left
    return Basis(left, s.astype(np.float64), right)
