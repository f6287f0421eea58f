"""A made pair of base models of real size, the target a noisy copy of known parts of the source.

Nothing is trained. What is real: every key and shape of the published SDXL and SSD-1B UNets
(weights, biases and norms, from the package's own `CONFIGS`), float16, and spectra on which a cut
at a share of the energy leaves about as much as it does in trained weights. What is known: which
source block each target block is a copy of, so that a matching can be checked.

A matrix is a Gaussian bulk plus a part of rank n / 8 with singular values like i^-0.5, n the
shorter side. Measured: the energy of 0.9 is reached at k / n =

    1280 x 1280  0.49    1280 x 2048  0.57    1280 x 5120   0.68
     640 x  640  0.49     640 x 2048  0.65    10240 x 1280  0.70

with 2 to 3 percent of the energy in the first value of square weights and 6 to 9 in that of the
longest. (A product of two square Gaussians around a decaying diagonal would reach it at 0.3, at
eight times the work.) The entries' standard deviation is 0.02; convolutions are Gaussian with that
of their fan-in.

Each tensor has a generator of its own, seeded by the seed, the model and the key: any of them can
be made alone, and gives the same numbers in any order.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.stacks import BLOCK, split_block
from prolora_jax.architectures.unet.table import Shape, UNetTensors, unet_table
from prolora_jax.benchmarks.diffusers_config import diffusers_config
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.atomic import write_text
from prolora_jax.io.containers.streamed import write_streamed

STD = 0.02
BIAS_STD, NORM_STD = 0.02, 0.05
SPIKE_FRACTION = 1 / 8
"""Rank of the decaying part, as a share of the shorter side."""
SPIKE_DECAY = -0.5
SQUARE_SHARE, LONG_SHARE = 0.15, 0.35
"""Share of the energy in the decaying part: the first for square weights, and so much of the
second as the shape is long. A long Gaussian has a flatter spectrum than a square one."""
WEIGHTS_FILE = "diffusion_pytorch_model.fp16.safetensors"
DTYPE = np.dtype(np.float16)


@dataclass(frozen=True)
class MadeNet:
    """One of the two models.

    Attributes:
        folder: name of its folder.
        config: which tensors it has.
        head_width: channels of an attention head; it is in `config.json` only.
    """

    folder: str
    config: UNetTensors
    head_width: int = 64


@dataclass(frozen=True)
class MadePair:
    """What decides every number of a pair.

    Attributes:
        source: the model that adapters are for.
        target: the model made of parts of it; its slots are no deeper.
        seed: of all random numbers.
        noise: Frobenius norm of what is added to a copied weight, relative to the weight's; for
            biases and norms relative to their spread.
    """

    source: MadeNet
    target: MadeNet
    seed: int = 0
    noise: float = 0.1

    @property
    def planted(self) -> Mapping[str, tuple[int, ...]]:
        """Source block of each block, ascending, by slot of the target."""
        sources = _depths(self.source.config)
        targets = _depths(self.target.config)
        return {
            slot: _chosen(f"{self.seed} planted {slot}", sources[slot], depth)
            for slot, depth in targets.items()
        }

    @property
    def source_spec(self) -> BaseModelSpec:
        """Modules of the source."""
        return spec_from_config(self.source.config, name=self.source.folder)

    @property
    def target_spec(self) -> BaseModelSpec:
        """Modules of the target."""
        return spec_from_config(self.target.config, name=self.target.folder)


def real_pair(seed: int = 0, noise: float = 0.1) -> MadePair:
    """SDXL and SSD-1B, as large as they are: 5.1 and 2.7 GB."""
    source, target = (MadeNet(name, CONFIGS[name]) for name in ("sdxl", "ssd-1b"))
    return MadePair(source, target, seed, noise)


def tiny_pair(seed: int = 0, noise: float = 0.1) -> MadePair:
    """The same two forms over few and narrow layers: half a second."""
    shared = {
        "block_out_channels": (16, 32, 64),
        "cross_attention_dim": 96,
        "add_embedding_dim": 112,
        "linear_projection": True,
    }
    source = UNetTensors(down_depths=(0, 2, 6), up_depths=(6, 2, 0), mid_depth=6, **shared)
    target = UNetTensors(
        down_depths=(0, 2, 3), up_depths=((3, 3, 6), (2, 1, 1), 0), mid="resnet", **shared
    )
    return MadePair(
        MadeNet("sdxl", source, head_width=8), MadeNet("ssd-1b", target, head_width=8), seed, noise
    )


class MadePlace(NamedTuple):
    """Where a benchmark works.

    Attributes:
        models: folder with `sdxl` and `ssd-1b` in it.
        scratch: on the same disk; goes at the end.
        small: whether the nets are tiny.
    """

    models: Path
    scratch: Path
    small: bool


@contextmanager
def made_place(folder: str | None, *, quick: bool) -> Iterator[MadePlace]:
    """A made pair that is there, or tiny nets made on the spot, and room beside them.

    Args:
        folder: of a made pair; tiny nets without it.
        quick: tiny nets, whatever pair is named.

    Yields:
        The place.

    Raises:
        UsageError: the folder is no made pair.
    """
    if folder is not None and not (Path(folder) / "ssd-1b").is_dir():
        raise UsageError(
            f"{folder}: found no made pair. Make one with scripts/make_checkpoint_pair.py OUT and "
            "name it: --pair OUT (or leave --pair out for small nets).",
            code=Refusal.MISSING_FILE,
        )
    with TemporaryDirectory(prefix="prolora-", dir=folder) as name:
        scratch = Path(name)
        if folder is not None and not quick:
            yield MadePlace(Path(folder), scratch, small=False)
            return
        write_models(tiny_pair(0, 0.1), scratch / "made")
        yield MadePlace(scratch / "made", scratch, small=True)


def write_models(pair: MadePair, folder: Path) -> None:
    """Write both models as diffusers folders, and `planted.json`.

    Args:
        pair: what to make.
        folder: where to; made when it is not there.

    Raises:
        OutputError: a file cannot be written.
    """
    makers: list[tuple[MadeNet, Callable[[str], np.ndarray]]] = [
        (pair.source, partial(source_tensor, pair)),
        (pair.target, partial(target_tensor, pair)),
    ]
    for net, make in makers:
        unet = folder / net.folder / "unet"
        write_streamed(unet / WEIGHTS_FILE, unet_table(net.config), DTYPE, make, {"format": "pt"})
        config = diffusers_config(net.config, head_width=net.head_width)
        write_text(unet / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    planted = {
        "seed": pair.seed,
        "noise": pair.noise,
        "slots": {slot: list(blocks) for slot, blocks in pair.planted.items()},
        "modules": {path: origin(pair, path) for path in pair.target_spec.modules},
    }
    write_text(folder / "planted.json", json.dumps(planted, indent=1) + "\n")


def source_tensor(pair: MadePair, key: str) -> np.ndarray:
    """One tensor of the source, float16.

    Args:
        pair: the pair.
        key: its key in the file, `conv_in.weight`.
    """
    rng = generator(f"{pair.seed} source {key}")
    shape = _table(pair.source.config)[key]
    return _made(rng, shape, norm_weight=len(shape) == 1 and key.endswith(".weight")).astype(DTYPE)


def target_tensor(pair: MadePair, key: str) -> np.ndarray:
    """One tensor of the target, float16: its origin in the source, and noise.

    Args:
        pair: the pair.
        key: its key in the file.
    """
    copied = source_tensor(pair, origin(pair, UNET + key).removeprefix(UNET)).astype(np.float32)
    noise = generator(f"{pair.seed} target {key}").standard_normal(copied.shape, np.float32)
    noise *= np.float32(pair.noise * np.std(copied, dtype=np.float64))
    return (copied + noise).astype(DTYPE)


def origin(pair: MadePair, path: str) -> str:
    """The source's path of a target's module or tensor: the same one but for the block's index."""
    split = split_block(path)
    if split is None:
        return path
    slot, index, role = split
    return f"{slot}{BLOCK}{pair.planted[slot][index]}.{role}"


def generator(name: str) -> np.random.Generator:
    """The generator that belongs to a name."""
    seed = int.from_bytes(sha256(name.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.SFC64(seed))


def _made(rng: np.random.Generator, shape: Shape, *, norm_weight: bool) -> np.ndarray:
    if len(shape) == 2:
        return _matrix(rng, *shape)
    tensor = rng.standard_normal(shape, np.float32)
    if norm_weight:
        return 1 + NORM_STD * tensor
    fan_in = int(np.prod(shape[1:]))
    return tensor * np.float32(BIAS_STD if len(shape) == 1 else fan_in**-0.5)


def _matrix(rng: np.random.Generator, out: int, width: int) -> np.ndarray:
    short, long = sorted((out, width))
    share = SQUARE_SHARE + LONG_SHARE * (1 - short / long)
    rank = max(1, int(short * SPIKE_FRACTION))
    decay = np.arange(1, rank + 1) ** SPIKE_DECAY
    decay *= STD * (share / np.sum(decay**2)) ** 0.5
    left = rng.standard_normal((out, rank), np.float32) * decay.astype(np.float32)
    weight = rng.standard_normal((out, width), np.float32)
    weight *= np.float32(STD * (1 - share) ** 0.5)
    weight += left @ rng.standard_normal((rank, width), np.float32)
    return weight


def _chosen(name: str, depth: int, kept: int) -> tuple[int, ...]:
    """`kept` of `depth` blocks, ascending; not the first ones where there is a choice."""
    rng = generator(name)
    while True:
        blocks = sorted(int(i) for i in rng.choice(depth, kept, replace=False))
        if blocks != list(range(kept)) or kept == depth:
            return tuple(blocks)


@cache
def _table(config: UNetTensors) -> Mapping[str, Shape]:
    return unet_table(config)


@cache
def _depths(config: UNetTensors) -> Mapping[str, int]:
    """Number of transformer blocks by slot."""
    found: dict[str, int] = {}
    for path in spec_from_config(config, name="depths").modules:
        split = split_block(path)
        if split is not None:
            found[split[0]] = max(found.get(split[0], 0), split[1] + 1)
    return found
