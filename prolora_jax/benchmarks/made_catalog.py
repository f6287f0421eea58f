"""A made catalog of adapters: several formats, ranks, dtypes, scales and choices of layers.

What an adapter is follows from its number in the catalog, in cycles whose lengths have few common
factors, so that a short catalog already has every kind and a long one most combinations; its
ranks are drawn. Factors look like trained ones: `down` as large as it is initialised, `up` small,
the columns decaying. They are cut from one pool of Gaussian numbers at places drawn for each
factor, because drawing billions anew would take as long as writing them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.benchmarks.made_models import generator
from prolora_jax.io.adapters.files import save_adapter

Layers = Literal["attn", "attn2", "attn+ff"]

FORMATS = (
    ("kohya-diffusers", ".safetensors"),
    ("kohya-ldm", ".safetensors"),
    ("diffusers", ".safetensors"),
    ("peft", ""),  # a folder
    ("peft", ".safetensors"),
)
DTYPES = ("float16",) * 5 + ("bfloat16", "float16", "float32")
LAYERS: Sequence[Layers] = ("attn", "attn", "attn", "attn2", "attn", "attn", "attn+ff")
ALPHAS = (1.0, 0.5, 2.0)
"""Alpha as a share of each module's rank."""
MIXED_EVERY = 6
"""Every so manieth file has two ranks."""
RANKS, RANK_SHARES = (4, 8, 16, 32, 64), (0.1, 0.15, 0.4, 0.3, 0.05)

UP_STD = 0.01
COLUMN_DECAY = -0.5
POOL = 2**22
"""Numbers in the pool; the largest factor of SDXL has 64 x 10240."""


@dataclass(frozen=True)
class MadeAdapter:
    """What one adapter of the catalog is.

    Attributes:
        name: its file or folder.
        format: one of `adapters.formats.keys.FORMATS`.
        ranks: the ranks in it, ascending.
        dtype: of its factors.
        layers: which layers it has: attention, text attention only, or feed-forwards, too.
        alpha: alpha as a share of each module's rank.
        seed: of the catalog; with the name it decides every number.
        modules: how many.
    """

    name: str
    format: str
    ranks: tuple[int, ...]
    dtype: str
    layers: Layers
    alpha: float
    seed: int
    modules: int = 0

    def record(self) -> dict[str, object]:
        """For `catalog.json`."""
        return asdict(self)


def write_catalog(
    base: BaseModelSpec, folder: Path, count: int, seed: int = 0
) -> Iterator[MadeAdapter]:
    """Write a catalog, one adapter at a time.

    Args:
        base: what the adapters are for.
        folder: where to.
        count: how many.
        seed: of all random numbers.

    Yields:
        What was written, after each adapter.

    Raises:
        OutputError: a file cannot be written.
    """
    pool = generator(f"{seed} pool").standard_normal(POOL, np.float32)
    for index in range(count):
        made = planned(index, seed)
        adapter = make_adapter(made, base, pool)
        save_adapter(adapter, folder / made.name, base=base, overwrite=True)
        yield replace(made, ranks=adapter.ranks, modules=len(adapter.modules))


def write_alike(base: BaseModelSpec, folder: Path, count: int, rank: int) -> list[Path]:
    """Write adapters of one table, for attention, in float16, whose scale is not 1.

    Args:
        base: what they are for.
        folder: where to.
        count: how many.
        rank: of all modules.

    Raises:
        OutputError: a file cannot be written.
    """
    pool, paths = generator("alike pool").standard_normal(POOL, np.float32), []
    for number in range(count):
        name = f"{number:04}.safetensors"
        made = MadeAdapter(name, "kohya-ldm", (rank,), "float16", "attn", 0.75, 0)
        save_adapter(make_adapter(made, base, pool), folder / name, base=base)
        paths.append(folder / name)
    return paths


def planned(index: int, seed: int) -> MadeAdapter:
    """What the adapter of this number is; a second rank is half the first one."""
    format, suffix = FORMATS[index % len(FORMATS)]
    rng = generator(f"{seed} adapter {index}")
    rank = int(rng.choice(RANKS, p=RANK_SHARES))
    ranks = (rank // 2, rank) if index % MIXED_EVERY == MIXED_EVERY - 1 else (rank,)
    return MadeAdapter(
        name=f"{index:04d}-{format}-r{rank}{suffix}",
        format=format,
        ranks=ranks,
        dtype=DTYPES[index % len(DTYPES)],
        layers=LAYERS[index % len(LAYERS)],
        alpha=ALPHAS[index % len(ALPHAS)],
        seed=seed,
    )


def make_adapter(made: MadeAdapter, base: BaseModelSpec, pool: np.ndarray) -> Adapter:
    """The adapter in memory.

    Args:
        made: what it is.
        base: what it is for.
        pool: Gaussian numbers, standard deviation 1.
    """
    rng = generator(f"{made.seed} factors {made.name}")
    dtype = np.dtype(getattr(ml_dtypes, made.dtype, made.dtype))
    modules = []
    for spec in base.modules.values():
        if not _has(made.layers, spec):
            continue
        out, width = spec.matrix_shape
        rank = made.ranks[int(rng.integers(len(made.ranks)))]
        down = _cut(rng, pool, (rank, width)) * np.float32(width**-0.5)
        # Cut along the rows and turned round: columns of `up` are to decay, and stay contiguous
        # until they are scaled.
        up = (_cut(rng, pool, (rank, out)) * _columns(rank)[:, None]).astype(dtype).T
        modules.append(LoraModule(spec.path, down.astype(dtype), up, made.alpha * rank))
    return Adapter(tuple(modules), made.format, origin=made.name)


def _has(layers: Layers, spec: ModuleSpec) -> bool:
    if layers == "attn2":
        return ".attn2." in spec.path
    return spec.kind_is("attn") or (layers == "attn+ff" and ".ff.net." in spec.path)


@cache
def _columns(rank: int) -> np.ndarray:
    """Size of each column of `up`; their root mean square is `UP_STD`, whatever the rank."""
    decay = np.arange(1, rank + 1) ** COLUMN_DECAY
    return (UP_STD * decay / np.sqrt(np.mean(decay**2))).astype(np.float32)


def _cut(rng: np.random.Generator, pool: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    size = shape[0] * shape[1]
    start = int(rng.integers(len(pool) - size))
    return pool[start : start + size].reshape(shape)
