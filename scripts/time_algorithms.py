"""LoHa and LoKr files against plain LoRA files of the same bytes: read, made into factors, moved.

    python scripts/time_algorithms.py [--pair FOLDER | --whole] [--out FILE]

Without a made pair of real size (`make_checkpoint_pair.py`) one of half its widths and fewer blocks
is made; `--whole` copies 722 modules of SDXL's own widths. Each file goes from disk to disk with
its report, subspaces and operators known before, in one process that keeps to one thread on one
core; contestants take turns (`benchmarks.timing`). A ratio is the median of the ratios of the
rounds, in CPU time.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # libraries read it when they are loaded
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL")}
    os.environ |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}

import numpy as np
from safetensors.numpy import save_file

from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import UNetTensors, unet_table
from prolora_jax.benchmarks import environment
from prolora_jax.benchmarks.cores import pin, progress
from prolora_jax.benchmarks.diffusers_config import diffusers_config
from prolora_jax.benchmarks.made_models import (
    DTYPE,
    WEIGHTS_FILE,
    MadeNet,
    MadePair,
    write_models,
)
from prolora_jax.benchmarks.timing import ROUNDS, Samples, interleaved, ratio
from prolora_jax.io.atomic import write_text
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers.streamed import write_streamed
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob
from prolora_jax.migration.many import migrate_files
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.subspaces.store import MemoryStore

LOHA_RANK = 8
LOKR_FACTOR = 8
METHODS = {"copy": ("same", "lora"), "prolora-full": ("lora",)}
"""Formats of the output by method: a copy may be written as it is, what is projected is not."""
FACTOR_RANKS = {"": "energy=0.999,max=64", " max=16": "max=16"}
AIM = 4.0
TRAINED = ".attentions."
"""In the paths of all modules that kohya's trainer trains by default."""


def half_pair() -> MadePair:
    """The form of SDXL and SSD-1B with half their widths and fewer blocks."""
    shared: dict[str, Any] = {
        "block_out_channels": (160, 320, 640),
        "cross_attention_dim": 1024,
        "add_embedding_dim": 1408,
        "linear_projection": True,
    }
    source = UNetTensors(down_depths=(0, 1, 3), up_depths=(3, 1, 0), mid_depth=3, **shared)
    target = UNetTensors(
        down_depths=(0, 1, 2), up_depths=((2, 2, 3), (1, 1, 1), 0), mid="resnet", **shared
    )
    return MadePair(MadeNet("sdxl", source), MadeNet("ssd-1b", target))


def write_files(spec: BaseModelSpec, trained: Collection[str], folder: Path) -> dict[str, Path]:
    """A LoHa and a LoKr of some layers, and for each a LoRA of as many bytes."""
    rng, made = np.random.default_rng(0), {}

    def some(*shape: int) -> np.ndarray:
        return (0.1 * rng.standard_normal(shape)).astype(np.float16)

    for path, module in spec.modules.items():
        if path not in trained:
            continue
        out, width = module.shape
        name = "lora_unet_" + path.removeprefix("unet.").replace(".", "_")
        halves = (LOKR_FACTOR, LOKR_FACTOR), (out // LOKR_FACTOR, width // LOKR_FACTOR)
        of_lokr = sum(a * b for a, b in halves)
        parts: dict[str, Mapping[str, np.ndarray]] = {
            "loha": {
                f"hada_w{n}_{side}": some(*shape)
                for n in "12"
                for side, shape in (("a", (out, LOHA_RANK)), ("b", (LOHA_RANK, width)))
            },
            "lokr": {f"lokr_w{n}": some(*shape) for n, shape in zip("12", halves, strict=True)},
        }
        ranks = {"loha": 2 * LOHA_RANK, "lokr": max(1, round(of_lokr / (out + width)))}
        for kind, rank in ranks.items():
            pair = {"lora_down.weight": some(rank, width), "lora_up.weight": some(out, rank)}
            parts[f"lora like {kind}"] = pair
        for kind, arrays in parts.items():
            made.setdefault(kind, {}).update({f"{name}.{e}": a for e, a in arrays.items()})
    found = {}
    for kind, tensors in made.items():
        found[kind] = folder / f"{kind.replace(' ', '_')}.safetensors"
        save_file(tensors, found[kind])
    return found


def moving(
    file: Path, out: Path, pair: BasePair, method: str, format: str, rank: str
) -> Callable[[], object]:
    """One file from disk to disk."""
    options = MigrationOptions(method=method, factor_rank=rank)  # pyright: ignore[reportArgumentType]
    job = FileJob(file, out)

    def run() -> None:
        for outcome in migrate_files([job], pair, options, Writing(format, overwrite=True)):
            if outcome.error is not None:
                raise outcome.error

    return run


def write_flat_sdxl(folder: Path) -> None:
    """SDXL as large as it is, all of whose weights are one number: a copy looks at none of them."""
    table, unet = unet_table(CONFIGS["sdxl"]), folder / "sdxl" / "unet"
    flat = partial(np.full, fill_value=0.02, dtype=DTYPE)
    write_streamed(unet / WEIGHTS_FILE, table, DTYPE, lambda key: flat(table[key]))
    config = diffusers_config(CONFIGS["sdxl"], head_width=64)
    write_text(unet / "config.json", json.dumps(config))


def measured(folder: Path, scratch: Path, rounds: int, *, whole: bool) -> dict[str, Any]:
    """Every file by every method; `whole` copies all that kohya's trainer trains, and no more."""
    about = environment.describe()
    names = ("sdxl", "sdxl") if whole else ("sdxl", "ssd-1b")
    source, target = (load_base_model(folder / name) for name in names)
    pair = BasePair(source, target, MemoryStore())
    modules = source.spec.modules
    trained = [p for p, m in modules.items() if (TRAINED in p if whole else m.kind_is("attn"))]
    files = write_files(source.spec, trained, scratch)
    results: dict[str, Any] = {}
    for method, formats in METHODS.items():
        if whole and method != "copy":
            continue
        for format in formats:
            ranks = FACTOR_RANKS if format == "lora" and not whole else {"": FACTOR_RANKS[""]}
            contestants = {
                f"{kind}{text}": moving(
                    file, scratch / "out.safetensors", pair, method, format, rank
                )
                for kind, file in files.items()
                for text, rank in ranks.items()
                if not (kind.startswith("lora") and text)
            }
            progress(f"{method} {format}: {len(contestants)} contestants, {rounds} rounds")
            samples = interleaved(contestants, rounds)
            found = {"seconds": {n: s.to_dict() for n, s in samples.items()}}
            results[f"{method} {format}"] = found | {"ratios": _ratios(samples)}
    return {
        "modules": len(trained),
        "bytes": {kind: file.stat().st_size for kind, file in files.items()},
        "aim": AIM,
        "results": results,
        "environment": environment.finish(about),
    }


def _ratios(samples: Mapping[str, Samples]) -> dict[str, float]:
    """Of each other algorithm's time to that of its plain LoRA."""
    return {
        name: round(ratio(found, samples[f"lora like {name.partition(' ')[0]}"]), 2)
        for name, found in samples.items()
        if not name.startswith("lora")
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=Path, help="folder of a made pair")
    parser.add_argument("--whole", action="store_true", help="a copy of SDXL's 722 modules")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pin()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if options.whole:
            write_flat_sdxl(scratch / "made")
        elif options.pair is None:
            write_models(half_pair(), scratch / "made")
        place = scratch / "made" if options.whole else options.pair or scratch / "made"
        found = measured(place, scratch, options.rounds, whole=options.whole)
    half = options.pair is None and not options.whole
    found["pair"] = "half widths" if half else "real size"
    text = json.dumps(found, indent=1) + "\n"
    if options.out is not None:
        options.out.write_text(text)
    sys.stdout.write(json.dumps({m: r["ratios"] for m, r in found["results"].items()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
