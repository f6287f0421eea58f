"""Pictures that a target makes with an adapter moved by every arm, and measures of them.

Usage: python scripts/laboratory_pictures.py RECIPE.yaml --out lab --target pruned --adapter invert
writes lab/pictures/pruned-invert-s0.png and .json.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from prolora_jax.evaluation.laboratory.recipe import Recipe
from prolora_jax.evaluation.laboratory.samples import SampleExam, one_of_each, write_grid
from prolora_jax.evaluation.laboratory.trials import Pair
from prolora_jax.evaluation.laboratory.workshop import Workshop
from prolora_jax.io.documents import read_yaml, write_json
from prolora_jax.plans.options import MigrationOptions

ARMS = ("copy", "subspace", "null-space", "prolora", "prolora-full", "rotation")


def main() -> None:
    """One row an arm; the first is the target by itself, the last its own adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained models")
    parser.add_argument("--target", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--basis-rank", default="energy=0.9")
    args = parser.parse_args()
    workshop = Workshop(args.out, read_yaml(args.recipe, Recipe))
    pair = Pair(workshop, args.target)
    exam = SampleExam(workshop, args.target, args.adapter)
    everyone = {"no LoRA": {}}
    for method in ARMS:
        options = MigrationOptions(method=method, basis_rank=args.basis_rank, min_similarity=-1.0)
        everyone[method], _ = pair.moved(args.adapter, args.seed, options)
    everyone["trained on target"] = workshop.factors(args.target, args.adapter, args.seed)
    rows, measured = {}, {}
    for name, factors in everyone.items():
        rows[name] = one_of_each(*exam.pictures(factors))
        measured[name] = asdict(exam.judge(factors))
        print(name, measured[name], flush=True)
    place = args.out / "pictures" / f"{args.target}-{args.adapter}-s{args.seed}"
    write_grid(rows, place.with_suffix(".png"))
    write_json(place.with_suffix(".json"), measured)


if __name__ == "__main__":
    main()
