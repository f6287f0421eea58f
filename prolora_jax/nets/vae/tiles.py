"""A VAE in overlapping tiles: memory of one tile, whatever the size of the picture.

Norms and attention see a tile alone, so a picture is not quite the same as in one piece; where
tiles overlap, one goes over into the next by a line. Tiles lie, and are blended, as
`enable_tiling` of diffusers' AutoencoderKL does it.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.vae.config import VaeConfig
from prolora_jax.nets.vae.vae import Latents, Pictures, Vae, moments_of

VaeTile = Literal["auto", "off"] | int
"""Height and width of tiles in pixels; `off`: one piece; `auto`: tiles for large pictures only."""

AUTO, LARGEST = 512, 1024 * 1024
"""Tiles that are taken where nobody says otherwise, and pixels up to which one piece is."""
_QUARTER = 4  # of a tile is shared with the next: sides that it divides fit to the pixel

Run = Callable[[Array], Array]


def tile_for(asked: VaeTile, size: tuple[int, int], config: VaeConfig) -> int | None:
    """Height and width of the tiles of a picture.

    Args:
        asked: by whom draws.
        size: of the picture, in pixels.
        config: of the VAE.

    Returns:
        Pixels; None for one piece, whatever its size.

    Raises:
        UsageError: tiles of this size have no quarter that is whole latents.
    """
    if asked == "off" or (asked == "auto" and size[0] * size[1] <= LARGEST):
        return None
    side = AUTO if asked == "auto" else asked
    least = _QUARTER * config.pixels_per_latent
    if not isinstance(side, int) or side < least or side % least:
        raise UsageError(
            f"--vae-tile {side}: expected auto, off, or a multiple of {least} pixels: a quarter of "
            f"a tile is shared with the next; correct it",
            code=Refusal.BAD_OPTION,
        )
    return side


def decoded(vae: Vae, params: Params, latents: Latents, tile: int | None) -> Pictures:
    """The pictures of latents that are already divided by `scaling_factor`.

    Args:
        vae: the net.
        params: its parameters.
        latents: of pictures.
        tile: of `tile_for`; None for one piece.
    """

    def run(part: Array) -> Any:
        return vae.apply({"params": params}, part, method=vae.decode)

    if tile is None:
        return run(latents)
    return _in_tiles(run, latents, tile // vae.config.pixels_per_latent, tile)


def encoded(
    vae: Vae, params: Params, pictures: Pictures, tile: int | None
) -> tuple[Latents, Latents]:
    """What latents pictures may have: mean and logarithm of the variance, as `Vae.encode`.

    Args:
        vae: the net.
        params: its parameters.
        pictures: with values from -1 to 1.
        tile: of `tile_for`; None for one piece.
    """

    def run(part: Array) -> Any:
        return vae.apply({"params": params}, part, method=vae.moments)

    if tile is None:
        return moments_of(run(pictures))
    return moments_of(_in_tiles(run, pictures, tile, tile // vae.config.pixels_per_latent))


def _in_tiles(
    run: Run, whole: Float[Array, "batch channels height width"], side: int, made: int
) -> Float[Array, "batch other tall wide"]:
    """What `run` makes of tiles, put together.

    Args:
        run: takes a tile to another resolution.
        whole: what is cut into tiles.
        side: height and width of a tile.
        made: of what is made of a tile.
    """
    if max(whole.shape[2:]) <= side:
        return run(whole)
    step, kept = side - side // _QUARTER, made - made // _QUARTER
    downs, acrosses = (range(0, extent, step) for extent in whole.shape[2:])
    tiles = _made(run, whole, side, list(product(downs, acrosses)))
    rows = []
    for down in downs:
        row = []
        for across in acrosses:
            tile = tiles[down, across]
            # The neighbours are blended already: where four tiles meet, all of them count.
            if down:
                tile = _blended(tiles[down - step, across], tile, made // _QUARTER, axis=2)
            if across:
                tile = _blended(tiles[down, across - step], tile, made // _QUARTER, axis=3)
            tiles[down, across] = tile
            row.append(tile[:, :, :kept, :kept])
        rows.append(jnp.concatenate(row, axis=3))
    return jnp.concatenate(rows, axis=2)


def _made(
    run: Run, whole: Array, side: int, places: list[tuple[int, int]]
) -> dict[tuple[int, int], Array]:
    """What is made of each tile, one after the other; tiles of one shape share a program."""
    height, width = whole.shape[2:]
    of_shape: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for down, across in places:
        shape = min(side, height - down), min(side, width - across)
        of_shape.setdefault(shape, []).append((down, across))
    found: dict[tuple[int, int], Array] = {}
    for shape, some in of_shape.items():

        def one(place: Array, shape: tuple[int, int] = shape) -> Array:
            begin = jnp.concatenate((jnp.zeros(2, jnp.int32), place))
            return run(jax.lax.dynamic_slice(whole, begin, (*whole.shape[:2], *shape)))

        made = jax.lax.map(one, jnp.array(some, jnp.int32))
        found |= {place: made[i] for i, place in enumerate(some)}
    return found


def _blended(before: Array, tile: Array, extent: int, axis: int) -> Array:
    """A tile whose first rows come out of the last rows of the tile before it, by a line."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    shape = [1, 1, 1, 1]
    shape[axis] = extent
    share = jnp.arange(extent, dtype=tile.dtype).reshape(shape) / extent
    last = jax.lax.slice_in_dim(before, before.shape[axis] - extent, None, axis=axis)
    first = jax.lax.slice_in_dim(tile, 0, extent, axis=axis)
    rest = jax.lax.slice_in_dim(tile, extent, None, axis=axis)
    return jnp.concatenate((last * (1 - share) + first * share, rest), axis=axis)
