"""Run a laboratory of language models; what is done is kept, and a killed run goes on.

Usage: python scripts/run_lm_evidence.py configs/laboratory/lm.yaml --out lab-lm
       python scripts/run_lm_evidence.py configs/laboratory/lm_smollm2.yaml --out lab-smollm2 \
           --model models/smollm2
"""

import argparse
from dataclasses import replace
from pathlib import Path

from prolora_jax.evaluation.laboratory.lm.recipe import LmLaboratory
from prolora_jax.evaluation.laboratory.lm.trials import run_lm
from prolora_jax.evaluation.laboratory.lm.workshop import LmWorkshop
from prolora_jax.io.documents import read_yaml, write_lines


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of models and results")
    parser.add_argument("--model", type=Path, help="folder of scripts/fetch_lm.py")
    parser.add_argument("--targets", default="", help="only these, separated by commas")
    args = parser.parse_args()
    lab = read_yaml(args.recipe, LmLaboratory)
    if args.targets:
        lab = replace(lab, targets=tuple(args.targets.split(",")))
    workshop = LmWorkshop(args.out, lab, lambda line: print(line, flush=True), args.model)
    rows = run_lm(workshop)
    write_lines(args.out / f"{args.recipe.stem}.jsonl", rows)
    print(f"{len(rows)} results")


if __name__ == "__main__":
    main()
