"""Folders of pictures as embeddings: in batches of one shape, over devices, each picture once."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.encoders import PictureEncoder
from prolora_jax.evaluation.metrics import preprocessing
from prolora_jax.evaluation.metrics.preprocessing import prepare
from prolora_jax.io.judging.kept import KeptEmbeddings
from prolora_jax.io.judging.pictures import Rejected, picture_files, read_picture
from prolora_jax.nets.pipelines.devices import devices_of, each_a_share, on_all
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.vision.lpips import Lpips
from prolora_jax.nets.vision.vit import VisionTransformer

_MOST_WAITING = 1024
"""Pictures that are known already and wait for one that is not; more are not held back."""


class Embedded(NamedTuple):
    """A picture and its embedding.

    Attributes:
        path: of the file.
        embedding: as the encoder makes it, of any length.
    """

    path: Path
    embedding: Float[np.ndarray, " width"]


class EmbeddedFolder(NamedTuple):
    """The pictures of a folder, and those that could not be read.

    Attributes:
        paths: of the pictures, by name.
        embeddings: row by row.
        rejected: with reasons.
    """

    paths: tuple[Path, ...]
    embeddings: Float[np.ndarray, "n width"]
    rejected: tuple[Rejected, ...]


def embed_folder(
    encoder: PictureEncoder,
    folder: Path,
    *,
    at_once: int = 8,
    mesh: Mesh | None = None,
    keep: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> EmbeddedFolder:
    """All pictures directly in a folder, embedded; what cannot be read is listed, with reasons.

    Args:
        encoder: of `load_encoder`.
        folder: with pictures.
        at_once: pictures in one batch; on a mesh for each device.
        mesh: devices with an axis `data`, over which the pictures of a batch are spread.
        keep: folder for embeddings, by picture and encoder; None keeps nothing.
        progress: called with the stage, and how many pictures of how many are done.

    Raises:
        UsageError: there is no such folder, no picture in it, or none that can be read.
        OutputError: an embedding cannot be kept.
    """
    files, paths, rows, rejected = picture_files(folder), [], [], []
    for found in embed(encoder, files, at_once=at_once, mesh=mesh, keep=keep):
        if isinstance(found, Rejected):
            rejected.append(found)
        else:
            paths.append(found.path)
            rows.append(found.embedding)
        progress("judging", len(paths) + len(rejected), len(files))
    if not rows:
        raise UsageError(
            f"{folder}: found {len(files)} pictures, none of which can be read (the first: "
            f"{rejected[0].reason}); expected pictures; draw them again",
            code=Refusal.MISSING_FILE,
        )
    return EmbeddedFolder(tuple(paths), np.stack(rows), tuple(rejected))


def embed(
    encoder: PictureEncoder,
    files: Iterable[Path],
    *,
    at_once: int = 8,
    mesh: Mesh | None = None,
    keep: Path | None = None,
) -> Iterator[Embedded | Rejected]:
    """Pictures embedded one batch after the other, in their order; memory does not grow.

    One program is compiled for a batch; the last one is filled up. A picture has the same
    embedding in any company, but for the rounding of sums.

    Args:
        encoder: of `load_encoder`.
        files: pictures.
        at_once: pictures in one batch; on a mesh for each device.
        mesh: devices with an axis `data`, over which the pictures of a batch are spread.
        keep: folder for embeddings, by picture and encoder; None keeps nothing.

    Yields:
        Each picture's embedding, or why it has none.

    Raises:
        UsageError: fewer than one picture at once.
        OutputError: an embedding cannot be kept.
    """
    batch = _batch(at_once, mesh)
    kept = None if keep is None else KeptEmbeddings(keep, encoder.digest, encoder.width)
    params = on_all(encoder.params, mesh)
    waiting: list[Embedded | Rejected | tuple[Path, str]] = []
    pixels: list[np.ndarray] = []

    def done() -> Iterator[Embedded | Rejected]:
        rows = iter(_embeddings(encoder.net, params, pixels, batch, mesh))
        for one in waiting:
            if isinstance(one, Embedded | Rejected):
                yield one
                continue
            path, digest = one
            row = next(rows)
            if kept is not None:
                kept.write(digest, row)
            yield Embedded(path, row)
        waiting.clear()
        pixels.clear()

    for file in files:
        read = read_picture(file)
        if isinstance(read, Rejected):
            waiting.append(read)
        elif kept is not None and (known := kept.read(read.digest)) is not None:
            waiting.append(Embedded(file, known))
        else:
            try:
                pixels.append(prepare(read.picture, encoder.preprocessing))
                waiting.append((file, read.digest))
            except UsageError as refused:
                waiting.append(Rejected(file, str(refused)))
        if len(pixels) == batch or not pixels or len(waiting) >= _MOST_WAITING:
            yield from done()
    yield from done()


def lpips_distances(
    net: Lpips,
    params: Params,
    files: Sequence[Path],
    *,
    at_once: int = 8,
    progress: Progress = lambda stage, done, total: None,
) -> Float[np.ndarray, "n n"]:
    """LPIPS of all pairs of pictures, symmetric, zero on the diagonal.

    Features are large (32 MB for a picture of 256 pixels), so those of two batches are held at a
    time, and each picture is looked at once for every batch before its own: memory does not grow
    with the number of pictures, but time does with its square.

    Args:
        net: of `load_lpips`.
        params: its parameters.
        files: pictures, all readable.
        at_once: pictures in one batch.
        progress: called with the stage, and how many pairs of batches of how many are done.

    Raises:
        UsageError: fewer than two pictures, or one cannot be read.
    """
    if len(files) < 2:
        raise UsageError(
            f"LPIPS: found {len(files)} pictures; expected at least 2; draw more",
            code=Refusal.BAD_OPTION,
        )
    batch = min(_batch(at_once, None), len(files))
    look, apart = _lpips_programs(net.widths)
    everything = range(len(files))
    parts = [everything[first : first + batch] for first in everything[::batch]]
    distances = np.zeros((len(files), len(files)), np.float32)
    count, total = 0, len(parts) * (len(parts) + 1) // 2
    for i, part in enumerate(parts):
        mine = look(params, _filled([_lpips_pixels(files[k]) for k in part], batch))
        for j, other in enumerate(parts[: i + 1]):
            others = mine
            if j < i:
                others = look(params, _filled([_lpips_pixels(files[k]) for k in other], batch))
            found = np.asarray(apart(params, mine, others))[: len(part), : len(other)]
            distances[np.ix_(part, other)] = found
            distances[np.ix_(other, part)] = found.T
            count += 1
            progress("LPIPS", count, total)
    np.fill_diagonal(distances, 0)
    return distances


def _batch(at_once: int, mesh: Mesh | None) -> int:
    if at_once < 1:
        raise UsageError(
            f"{at_once} pictures at once: expected at least 1; correct it", code=Refusal.BAD_OPTION
        )
    return at_once * devices_of(mesh)


def _embeddings(
    net: VisionTransformer, params: Params, pixels: list[np.ndarray], batch: int, mesh: Mesh | None
) -> np.ndarray:
    """Embeddings of at most one batch, `(pictures, width)` float32."""
    if not pixels:
        return np.zeros((0, 0), np.float32)
    given = each_a_share(_filled(pixels, batch), mesh)
    return np.asarray(_program(net.config, net.dtype)(params, given))[: len(pixels)]


def _filled(pixels: list[np.ndarray], batch: int) -> np.ndarray:
    # The last batch is filled up: another size would be compiled again.
    return np.stack((pixels * batch)[:batch])


@lru_cache(maxsize=8)
def _program(config: Any, dtype: Any) -> Any:
    net = VisionTransformer(config, dtype)

    def run(params: Params, pixels: jax.Array) -> jax.Array:
        # Accelerators multiply in fewer bits unless they are told; scores are compared by little.
        with jax.default_matmul_precision("highest"):
            seen: Any = net.apply({"params": params}, pixels)
        return seen.embedding.astype(np.float32)

    return jax.jit(run)


@lru_cache(maxsize=2)
def _lpips_programs(widths: tuple[int, ...]) -> tuple[Any, Any]:
    net = Lpips(widths)

    def look(params: Params, pixels: jax.Array) -> Any:
        with jax.default_matmul_precision("highest"):
            return net.apply({"params": params}, pixels, method=net.look)

    def apart(params: Params, mine: Any, others: Any) -> jax.Array:
        def with_all(one: Any) -> Any:
            alone = jax.tree.map(lambda a: a[None], one)
            return net.apply({"params": params}, alone, others, method=net.apart)

        # One after the other: all at once would hold the features of a whole square.
        return jax.lax.map(with_all, mine)

    return jax.jit(look), jax.jit(apart)


def _lpips_pixels(file: Path) -> np.ndarray:
    read = read_picture(file)
    if isinstance(read, Rejected):
        raise UsageError(
            f"{file}: {read.reason}; expected a picture; leave it out or draw it again",
            code=Refusal.MISSING_FILE,
        )
    return prepare(read.picture, preprocessing.LPIPS)
