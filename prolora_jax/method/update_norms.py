"""Norms of updates as files have them, for many modules at once (docs/method.md 6).

Thousands of files have hundreds of modules each, so that this is done where casts are fast: on the
device, in float32, one module after the other, whose numbers then never leave the cache of a CPU.
A module's norm has the same bits alone and among others (tested), whatever is beside it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from prolora_jax.method.encoding import rank_class
from prolora_jax.method.linalg import HIGHEST

PIECE = 32
"""Modules in one call of the device."""

CANCELLED = 1e-4
"""Share of what its columns have one by one, below which an update is computed in float64."""

_SMALLEST, _LARGEST = 1e-20, 1e30
"""Squares of an update that float32 certainly holds, with those of its factors."""


def squared_norms(
    ups: Float[np.ndarray, "modules out rank"], downs: Float[np.ndarray, "modules rank width"]
) -> Float[np.ndarray, " modules"]:
    """Squared Frobenius norm of each `up @ down`, to float32's rounding.

    Args:
        ups: in any float dtype but float64.
        downs: the same.

    Returns:
        float64; not finite where a number is not, or where float32 does not hold its square.
    """
    of_up, of_down = (
        in_pieces(partial(grams, side=s), a) for s, a in (("up", ups), ("down", downs))
    )
    return from_grams(of_up, of_down, lambda i: (ups[i], downs[i]))


def squared_norm(up: Float[np.ndarray, "out rank"], down: Float[np.ndarray, "rank width"]) -> float:
    """The same for one module of any float dtype."""
    if np.float64 in (up.dtype, down.dtype):
        return _in_double(up, down)
    rank = rank_class(up.shape[1])
    if rank > up.shape[1]:  # here, so that few programs are compiled for the ranks of any catalog
        missing = rank - up.shape[1]
        up, down = np.pad(up, ((0, 0), (0, missing))), np.pad(down, ((0, missing), (0, 0)))
    found = jax.device_get((_gram(up, "up", rank), _gram(down, "down", rank)))
    return float(from_grams(found[0][None], found[1][None], lambda _: (up, down))[0])


def from_grams(
    of_up: np.ndarray,
    of_down: np.ndarray,
    factors: Callable[[int], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Squared norms from `grams` of both sides; `factors(i)` are asked for where these say little.

    Args:
        of_up: `(modules, rank, rank)`.
        of_down: the same.
        factors: up and down of the module with a number.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        up, down = of_up.astype(np.float64), of_down.astype(np.float64)
        found = np.einsum("nij,nij->n", up, down)
        apart = np.einsum("nii,nii->n", up, down)
        held = (apart > _SMALLEST) & (apart < _LARGEST)
        unsure = ~(held & (found >= CANCELLED * apart))
    for i in np.flatnonzero(unsure):
        found[i] = _in_double(*factors(int(i)))
    return found


def in_pieces(run: Callable[..., Array], *arrays: np.ndarray) -> np.ndarray:
    """A function of the rows of some arrays, `PIECE` rows at a time, on the host.

    However many rows there are, there is one program for one shape of a row.

    Args:
        run: as `grams`; each row of its result depends on the same row of the arrays.
        arrays: with equally many rows.
    """
    count = len(arrays[0])
    found = jax.device_get([run(*(array[p] for array in arrays)) for p in pieces(count)])
    last = sum(map(len, found)) - count
    return np.concatenate([*found[:-1], found[-1][last:]]) if len(found) > 1 else found[0]


def pieces(count: int) -> list[slice]:
    """Pieces of one size; the last one may have rows of the one before once more."""
    size = min(PIECE, count)
    starts = (min(start, count - size) for start in range(0, count, size))
    return [slice(start, start + size) for start in starts]


@partial(jax.jit, static_argnames=("side",))
def grams(
    factors: Float[Array | np.ndarray, "modules rows columns"], side: str
) -> Float[Array, "modules rank rank"]:
    """Gram matrices of the rank columns of factors, `side` `up` or `down`, in float32.

    Zeros fill them up to a rank of the menu, as they do in `squared_norm`.
    """
    rank = rank_class(factors.shape[2 if side == "up" else 1])
    one = partial(_gram, side=side, rank=rank)
    # On CPU one after the other: a cast of all at once is bound by memory, and takes three times
    # as long.
    return lax.map(one, factors) if jax.default_backend() == "cpu" else jax.vmap(one)(factors)


@partial(jax.jit, static_argnames=("side", "rank"))
def _gram(factor: Array | np.ndarray, side: str, rank: int) -> Array:
    missing = [(0, 0), (0, 0)]
    missing[side == "up"] = (0, rank - factor.shape[side == "up"])
    filled = jnp.pad(jnp.asarray(factor), missing)
    # Turned before the cast: over rows, products take two thirds of the time, and are the same.
    wide = (filled.T if side == "up" else filled).astype(jnp.float32)
    return lax.dot_general(wide, wide, (((1,), (1,)), ((), ())), precision=HIGHEST)


def _in_double(up: np.ndarray, down: np.ndarray) -> float:
    up, down = up.astype(np.float64), down.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # not finite: said by the result
        squared = float(np.vdot(up.T @ up, down @ down.T))
    return squared if squared != squared else max(squared, 0.0)
