"""Run a sweep over trained laboratory models, and print its tables; what is done is kept.

Usage: python scripts/run_sweep.py RECIPE.yaml SWEEP.yaml --out lab (see configs/laboratory).
"""

import argparse
from dataclasses import replace
from pathlib import Path

from prolora_jax.evaluation.laboratory.recipe import Recipe
from prolora_jax.evaluation.laboratory.summary import table
from prolora_jax.evaluation.laboratory.sweep import Sweep, results, run_sweep
from prolora_jax.evaluation.laboratory.workshop import Workshop
from prolora_jax.io.documents import read_yaml, write_lines


def main() -> None:
    """Run what is missing, then print means by arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained models")
    parser.add_argument("--targets", default="", help="only these, separated by commas")
    parser.add_argument("--tables-only", action="store_true")
    args = parser.parse_args()
    sweep = read_yaml(args.sweep, Sweep)
    if args.targets:
        sweep = replace(sweep, targets=tuple(args.targets.split(",")))
    workshop = Workshop(args.out, read_yaml(args.recipe, Recipe))
    if not args.tables_only:
        run_sweep(workshop, sweep, args.sweep.stem, lambda line: print(line, flush=True))
    rows = list(results(args.out / "results" / args.sweep.stem, sweep))
    write_lines(args.out / "results" / f"{args.sweep.stem}.jsonl", rows)
    for measure in ("arrived", "arrived_at_best", "arrived_at_norm", "own_change", "norm"):
        print(f"\n{table(rows, measure=measure, columns=('target', 'adapter'))}")


if __name__ == "__main__":
    main()
