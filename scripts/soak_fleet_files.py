"""What `soak_fleet.py` works on: a pair of very small nets, and a catalog of very small adapters.

Of every ten files one is broken (in turn in every way of `mixed_catalog.BROKEN`), and one has the
content of an earlier one; ranks go from 1 to 8, formats in turn, folders are nested. An adapter has
a quarter of the layers of attention, another one in turn.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.architectures.unet.table import UNetTensors
from prolora_jax.benchmarks.made_catalog import MadeAdapter, make_adapter
from prolora_jax.benchmarks.made_models import MadeNet, MadePair, generator, write_models
from prolora_jax.benchmarks.mixed_catalog import BROKEN, WRITERS
from prolora_jax.io.adapters.files import save_adapter

FOLDERS = ("", "styles", "styles/old ones", "人物/é", "a 'quoted' \"name\"", "-dash/x/y")
FORMATS = tuple((format, suffix) for format, suffix in WRITERS if "-bare" not in format)[:7]
"""Those that `save_adapter` writes."""
MOST_RANK = 8
_POOL = 2**16


@dataclass(frozen=True)
class MadeFiles:
    """What was made.

    Attributes:
        source: base model that the adapters are for.
        target: base model they go to.
        catalog: folder of the adapters.
        good: names of those that can be migrated and stand for themselves.
        broken: how many cannot be.
    """

    source: Path
    target: Path
    catalog: Path
    good: tuple[str, ...]
    broken: int


def small_pair(seed: int) -> MadePair:
    """Nets of a few thousand numbers, shaped like SDXL and SSD-1B."""
    shared = {
        "block_out_channels": (16, 32, 32),
        "cross_attention_dim": 24,
        "add_embedding_dim": 40,
        "linear_projection": True,
    }
    source = UNetTensors(down_depths=(0, 1, 3), up_depths=(2, 1, 0), mid_depth=1, **shared)
    target = UNetTensors(down_depths=(0, 1, 2), up_depths=(1, 1, 0), mid="resnet", **shared)
    return MadePair(
        MadeNet("sdxl", source, head_width=8), MadeNet("ssd-1b", target, head_width=8), seed, 0.1
    )


def make_files(folder: Path, count: int, seed: int) -> MadeFiles:
    """Write the pair and a catalog.

    Args:
        folder: where to; made when it is not there.
        count: of adapters.
        seed: of all random numbers.
    """
    pair = small_pair(seed)
    write_models(pair, folder)
    catalog, good, broken = folder / "catalog", [], 0
    base, pool = pair.source_spec, generator(f"{seed} pool").standard_normal(_POOL, np.float32)
    for name, copy_of, why in _planned(count, seed):
        path = catalog / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if copy_of is not None:
            copy = shutil.copytree if (catalog / copy_of).is_dir() else shutil.copyfile
            copy(catalog / copy_of, path)
            continue
        format, _ = FORMATS[len(good) % len(FORMATS)]
        rank = 1 + int(generator(f"{seed} rank {name}").integers(MOST_RANK))
        made = MadeAdapter(name, format, (rank,), "float16", "attn", 1.0, seed)
        whole = make_adapter(made, base, pool)
        adapter = replace(whole, modules=whole.modules[len(good) % 4 :: 4])
        if why is None:
            save_adapter(adapter, path, format=format, base=base)
            good.append(name)
        else:
            BROKEN[why][2](path, dump(adapter, "kohya-ldm", base)[0])
            broken += 1
    return MadeFiles(folder / "sdxl", folder / "ssd-1b", catalog, tuple(good), broken)


def _planned(count: int, seed: int) -> Iterator[tuple[str, str | None, str | None]]:
    """Name of each file, what it is a copy of, and how it is broken."""
    good: list[str] = []
    for index in range(count):
        stem = f"{FOLDERS[index % len(FOLDERS)]}/{index:05d}".lstrip("/")
        if index % 10 == 9:
            why = list(BROKEN)[index // 10 % len(BROKEN)]
            yield f"{stem}{BROKEN[why][0]}", None, why
        elif index % 10 == 8:
            first = good[int(generator(f"{seed} copy {index}").integers(len(good)))]
            yield f"{stem}{Path(first).suffix}", first, None
        else:
            good.append(f"{stem}{FORMATS[len(good) % len(FORMATS)][1]}")
            yield good[-1], None, None
