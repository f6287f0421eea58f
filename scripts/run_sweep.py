"""Run a sweep over trained laboratory models, and print its tables; what is done is kept.

Usage: python scripts/run_sweep.py RECIPE.yaml SWEEP.yaml --out lab (see configs/laboratory).

With `--train`, each cell's base models and adapters are trained right before it where they are not
there. What is compiled is kept in lab/compiled, for later runs and for train_laboratory.py.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from prolora_jax.evaluation.laboratory.once import keep_compiled
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
    for name in ("targets", "adapters", "seeds"):
        parser.add_argument(f"--{name}", default="", help="only these, separated by commas")
    parser.add_argument("--train", action="store_true", help="train what a cell lacks")
    parser.add_argument("--tables-only", action="store_true")
    args = parser.parse_args()
    sweep = read_yaml(args.sweep, Sweep)
    if args.targets:
        sweep = replace(sweep, targets=tuple(args.targets.split(",")))
    if args.adapters:
        sweep = replace(sweep, adapters=tuple(args.adapters.split(",")))
    if args.seeds:
        sweep = replace(sweep, seeds=tuple(map(int, args.seeds.split(","))))

    def say(line: str) -> None:
        print(line, flush=True)

    keep_compiled(args.out)
    workshop = Workshop(args.out, read_yaml(args.recipe, Recipe), say)
    if not args.tables_only:
        run_sweep(workshop, sweep, args.sweep.stem, say, train=args.train)
    rows = list(results(args.out / "results" / args.sweep.stem, sweep))
    write_lines(args.out / "results" / f"{args.sweep.stem}.jsonl", rows)
    for measure in ("arrived", "arrived_at_best", "arrived_at_norm", "own_change", "norm"):
        print(f"\n{table(rows, measure=measure, columns=('target', 'adapter'))}")


if __name__ == "__main__":
    main()
