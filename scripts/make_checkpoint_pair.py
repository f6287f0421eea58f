"""Make a pair of base models of real size, and a catalog of adapters for the first.

    python scripts/make_checkpoint_pair.py OUT --adapters 200

Writes, all from one seed:

    OUT/sdxl/unet/, OUT/ssd-1b/unet/   every tensor of SDXL's and SSD-1B's UNet, float16
    OUT/planted.json                   which part of the first each part of the second copies
    OUT/catalog/, OUT/catalog.json     adapters in mixed formats, ranks and dtypes; what each is

Nothing in it is trained (see `prolora_jax.benchmarks.made_models`). `--quick` makes the same over
tiny nets. The models have 7.8 GB and take 100 s of one core and 0.5 GB of memory; 200 adapters have
13 GB and take 90 s, most of them the disk's, and 1.1 GB of memory (measured on two shared cores).
"""

import argparse
import json
import time
from pathlib import Path

from prolora_jax.benchmarks.made_catalog import write_catalog
from prolora_jax.benchmarks.made_models import real_pair, tiny_pair, write_models
from prolora_jax.io.atomic import write_text

ADAPTERS, QUICK_ADAPTERS = 200, 12


def main(arguments: list[str] | None = None) -> None:
    """Make what the command line asks for.

    Args:
        arguments: of the command line; those of this process if None.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adapters", type=int, help=f"{ADAPTERS}, or {QUICK_ADAPTERS} of quick")
    parser.add_argument("--noise", type=float, default=0.1, help="relative to each copied weight")
    parser.add_argument("--quick", action="store_true", help="tiny nets of the same form")
    chosen = parser.parse_args(arguments)

    started = time.monotonic()
    pair = (tiny_pair if chosen.quick else real_pair)(chosen.seed, chosen.noise)
    write_models(pair, chosen.out)
    print(f"models: {time.monotonic() - started:.1f} s")

    started = time.monotonic()
    count = chosen.adapters
    if count is None:
        count = QUICK_ADAPTERS if chosen.quick else ADAPTERS
    made = write_catalog(pair.source_spec, chosen.out / "catalog", count, chosen.seed)
    records = [adapter.record() for adapter in made]
    write_text(chosen.out / "catalog.json", json.dumps(records, indent=1) + "\n")
    print(f"{count} adapters: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
