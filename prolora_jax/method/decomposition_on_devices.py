"""Singular value decompositions on devices: many weights of one shape, or one very large weight.

Weights are tall here, `(long, short)`: a wide one comes transposed. Both ways are the Gram route of
`decomposition.decompose`: W'W, symmetric eigensolver on the short side, long side W v_i / s_i. All
columns come back, also those that the route does not determine: who uses k of them asks
`decomposition.gram_is_safe` first, with the ratio of `safe_ratio`.

The arithmetic is float64 where 64-bit types are enabled (`with jax.enable_x64(True)`: CPU, GPU),
with the errors of `decomposition.gram_eigh`; the vectors are then rounded to float32, in which
subspaces are stored. Without (TPU, which has no float64) it is float32 with products at HIGHEST
precision: the projector on the leading k columns is then off by 1e-5 (median) to 3e-3 (tall
weights, worst) in 2-norm over the spectra of the project's measurements, by more where the gap at
the cut is below 1e-5 of s_1, and a singular value s_i by about 6e-8 * s_1^2 / (2 s_i).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from prolora_jax.method.decomposition import GRAM_SAFE_RATIO
from prolora_jax.method.linalg import matmul

SINGLE_SAFE_RATIO = 3e-2
"""Smallest wanted sigma_k / sigma_1 in float32 arithmetic (see `safe_ratio`)."""


class TallDecomposition(NamedTuple):
    """Singular triplets of tall weights `W = long @ diag(s) @ short.T`, on the devices.

    Attributes:
        long: float32. A column whose singular value came out as 0 is W v_i, not a unit vector.
        s: descending, in the dtype of the arithmetic.
        short: float32, a full orthogonal matrix.
    """

    long: Float[Array, "*n long short"]
    s: Float[Array, "*n short"]
    short: Float[Array, "*n short short"]


def safe_ratio(s: Float[np.ndarray, "..."]) -> float:
    """Smallest s_k / s_1 for which columns `1..k` of a decomposition with these `s` may be used.

    The long side is orthonormal to eps * (s_1 / s_k)^2: 2.2e-8 at the ratio of float64, 1.3e-4 at
    the one of float32.
    """
    return GRAM_SAFE_RATIO if s.dtype == np.float64 else SINGLE_SAFE_RATIO


def decompose_stack(
    tall: Float[Array | np.ndarray, "n long short"], mesh: Mesh
) -> TallDecomposition:
    """Decompose weights of one shape, spread over the devices; nothing travels between devices.

    Args:
        tall: the weights, in any float dtype; `n` is a multiple of the number of devices. Zero
            matrices fill up a stack; their long side comes back as zeros.
        mesh: one axis; each device gets the same number of weights.

    Returns:
        Decompositions with leading axis `n`, sharded over the mesh along it. Costs about
        10 * long * short^2 operations a weight.

    Raises:
        ValueError: when `n` does not divide by the number of devices.
    """
    if tall.shape[0] % mesh.size:
        raise ValueError(f"{tall.shape[0]} weights over {mesh.size} devices: fill up with zeros")
    return _stack_program(jax.device_put(tall, along(mesh)), mesh)


def decompose_rows(tall: Float[Array | np.ndarray, "long short"], mesh: Mesh) -> TallDecomposition:
    """Decompose one very large weight whose rows are spread over the devices.

    Each device holds its rows only and forms their W'W; the sum of these, `(short, short)`, is all
    that travels. Every device solves for the short side and makes its rows of the long side.

    Args:
        tall: the weight, in any float dtype: on the host, and a device is sent its rows alone; or
            spread by `along` already, with rows of zeros up to a multiple of the devices.
        mesh: one axis; its devices are of one kind, or their `short` may differ in signs.

    Returns:
        `long` sharded by rows, their number rounded up to a multiple of the devices (the rows
        beyond are zero: cut them off); `s` and `short` on every device.
    """
    if isinstance(tall, jax.Array):
        return rows_program(tall, mesh)
    long, short = tall.shape
    rows = padded_rows(long, mesh)

    def local(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(rows)
        found = tall[start:stop]
        return np.pad(found, ((0, stop - start - len(found)), (0, 0)))

    return rows_program(jax.make_array_from_callback((rows, short), along(mesh), local), mesh)


def padded_rows(rows: int, mesh: Mesh) -> int:
    """Rows of a weight that is spread over the devices, with those of zeros at its end."""
    return -(-rows // mesh.size) * mesh.size


@partial(jax.jit, static_argnames="mesh")
def rows_program(tall: Float[Array, "rows short"], mesh: Mesh) -> TallDecomposition:
    """The compiled part of `decompose_rows`: `tall` is sharded by rows, as many on each device."""
    (axis,) = mesh.axis_names

    def local(part: Float[Array, "part short"]) -> tuple[Array, ...]:
        part = _wide(part)
        return tuple(_from_gram(part, jax.lax.psum(matmul(part.T, part), axis)))

    by_rows, everywhere = PartitionSpec(axis), PartitionSpec()
    specs = by_rows, everywhere, everywhere
    found = jax.shard_map(local, mesh=mesh, in_specs=by_rows, out_specs=specs)(tall)
    return TallDecomposition(*found)


@partial(jax.jit, static_argnames="mesh")
def _stack_program(tall: Float[Array, "n long short"], mesh: Mesh) -> TallDecomposition:
    def local(part: Float[Array, "part long short"]) -> TallDecomposition:
        part = _wide(part)
        return _from_gram(part, matmul(part.mT, part))

    each = PartitionSpec(*mesh.axis_names)
    return jax.shard_map(local, mesh=mesh, in_specs=each, out_specs=each)(tall)


def _wide(tall: Float[Array, "*n long short"]) -> Float[Array, "*n long short"]:
    """In the widest enabled dtype; the cast is done here, so that weights travel as stored."""
    return tall.astype(jax.dtypes.canonicalize_dtype(np.float64))


def _from_gram(
    tall: Float[Array, "*n long short"], gram: Float[Array, "*n short short"]
) -> TallDecomposition:
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    s = jnp.sqrt(jnp.maximum(eigenvalues[..., ::-1], 0.0))
    short = vectors[..., ::-1]
    # Division by 0 would make infinite numbers of columns that nobody may use anyway.
    divisor = jnp.where(s > 0.0, s, jnp.ones_like(s))[..., None, :]
    long = matmul(tall, short) / divisor
    return TallDecomposition(long.astype(jnp.float32), s, short.astype(jnp.float32))


def along(mesh: Mesh) -> NamedSharding:
    """The first axis of an array over the mesh's one axis."""
    (axis,) = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(axis))
