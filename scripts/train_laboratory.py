"""Train the laboratory: base models and adapters, each once; what is there already is kept.

Usage: python scripts/train_laboratory.py RECIPE.yaml --out lab (see configs/laboratory).

Several processes may share one folder when they are given different bases (`--only`). One core a
process is fastest: set XLA_FLAGS="--xla_cpu_multi_thread_eigen=false" and bind each to a core.
"""

import argparse
import time
from pathlib import Path

from prolora_jax.evaluation.laboratory.once import keep_compiled
from prolora_jax.evaluation.laboratory.recipe import Recipe
from prolora_jax.evaluation.laboratory.workshop import Workshop
from prolora_jax.io.documents import read_yaml


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="bases, separated by commas")
    parser.add_argument("--adapters", default="", help="adapters, separated by commas")
    parser.add_argument("--seeds", default="", help="seeds of adapters, separated by commas")
    parser.add_argument("--bases-only", action="store_true")
    args = parser.parse_args()
    recipe = read_yaml(args.recipe, Recipe)
    start = time.perf_counter()

    def say(line: str) -> None:
        print(f"{time.perf_counter() - start:7.1f} s  {line}", flush=True)

    keep_compiled(args.out)
    workshop = Workshop(args.out, recipe, say)
    bases = args.only.split(",") if args.only else [base.name for base in recipe.bases]
    adapters = args.adapters.split(",") if args.adapters else [a.name for a in recipe.adapters]
    seeds = [int(seed) for seed in args.seeds.split(",")] if args.seeds else recipe.seeds
    for base in bases:
        workshop.make_base(base)
    for seed in () if args.bases_only else seeds:
        for base in bases:
            for adapter in adapters:
                workshop.make_adapter(base, adapter, seed)


if __name__ == "__main__":
    main()
