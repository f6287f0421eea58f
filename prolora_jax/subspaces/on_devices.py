"""Subspaces computed on devices: weights of one shape in stacks, very large ones by their rows.

While the devices work on one stack, a thread reads the next one from the checkpoint, and the
results of the one before go to the host. One process only: every device of the mesh is its own.
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
    decompose_rows,
    decompose_stack,
    safe_ratio,
)
from prolora_jax.subspaces.on_host import Todo, finite_matrix

STACK_BYTES = 256 * 2**20
"""Float32 weights in one stack for each device; working on them takes about ten times as much."""

ROWS_BYTES = 2**30
"""A weight with more bytes than this in float32 is spread over the devices by its rows."""

FLOAT32_BYTES = 4


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


def on_devices(model: BaseModel, todo: Todo, mesh: Mesh) -> Iterator[tuple[str, Basis | None]]:
    """Each weight's basis by its fingerprint, from the devices of a mesh with one axis.

    Args:
        model: the base model.
        todo: what to compute.
        mesh: the devices; float64 unless they are TPUs (see `decomposition_on_devices`).

    Yields:
        Fingerprint and basis; None for a basis when the Gram route is not safe for the columns
        that its rule asks for (see `decomposition.decompose`): compute that one on the host.

    Raises:
        BaseModelError: when a weight has NaN or infinite numbers.
    """
    wide = mesh.devices.flat[0].platform != "tpu"
    batches = plan_batches(model, todo, mesh.size)
    running: tuple[DeviceBatch, TallDecomposition] | None = None
    for batch, tall in prefetch((batch, _read(model, batch)) for batch in batches):
        # Not around the loop: what runs between two items of a generator would be in it, too.
        with jax.enable_x64(wide):
            started = decompose_stack(tall, mesh) if batch.size else decompose_rows(tall, mesh)
        if running is not None:
            yield from _collect(model, *running)
        running = batch, started
        del tall
    if running is not None:
        yield from _collect(model, *running)


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


def _read(model: BaseModel, batch: DeviceBatch) -> np.ndarray:
    """Weights of a batch, tall and float32: `(size, long, short)`, by rows `(long, short)`."""
    if not batch.size:
        return _tall(model, batch.items[0].path)
    stack = np.zeros((batch.size, *batch.shape), np.float32)
    for place, item in zip(stack, batch.items, strict=False):  # zeros fill up the stack
        place[:] = _tall(model, item.path)
    return stack


def _tall(model: BaseModel, path: str) -> np.ndarray:
    matrix = finite_matrix(model, path)
    return matrix.T if _is_wide(model, path) else matrix


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
        values = s[i].astype(np.float64)
        k = item.rule.retained(values)
        if not gram_is_safe(values, k, safe_ratio(s)):
            yield item.fingerprint, None
            continue
        # Copies: a store in memory would otherwise keep the whole stack for the sake of a part.
        left, right = long[i, :, :k].copy(), short[i].copy()
        if _is_wide(model, item.path):
            left, right = right, left
        yield item.fingerprint, Basis(left, values, right)
