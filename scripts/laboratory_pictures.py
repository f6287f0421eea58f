"""Pictures that a target makes with an adapter moved by every arm, and measures of them.

Usage: python scripts/laboratory_pictures.py RECIPE.yaml --out lab --target pruned --adapter invert
writes lab/pictures/pruned-invert-s0.png and .json. With --refine the arms are those of rule 14 of
docs/evidence.md instead: the copy, what learns from samples, and the teacher itself.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prolora_jax.evaluation.laboratory.exams import Depth
from prolora_jax.evaluation.laboratory.recipe import Recipe
from prolora_jax.evaluation.laboratory.refining import AdapterSamples, StudentSettings, fitted
from prolora_jax.evaluation.laboratory.samples import SampleExam, one_of_each, write_grid
from prolora_jax.evaluation.laboratory.trials import Contest, Pair
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
    parser.add_argument("--refine", action="store_true", help="copy, delta, refine, reteach")
    args = parser.parse_args()
    workshop = Workshop(args.out, read_yaml(args.recipe, Recipe))
    pair = Pair(workshop, args.target)
    exam = SampleExam(workshop, args.target, args.adapter)
    contest = Contest(pair, args.adapter, args.seed, Depth(pictures=160, own=False, scales=False))
    everyone: dict[str, Any] = {"no LoRA": {}}
    for method in ("copy",) if args.refine else ARMS:
        options = MigrationOptions(method=method, basis_rank=args.basis_rank, min_similarity=-1.0)
        everyone[method], _ = pair.moved(args.adapter, args.seed, options)
    if args.refine:
        everyone |= learned(contest)
    everyone["trained on target"] = contest.trained
    rows, measured = {}, {}
    for name, arm in everyone.items():
        net = arm if callable(arm) else workshop.predict(args.target, dict(arm))
        rows[name] = one_of_each(*exam.drawn(net))
        arrived = {"arrived": contest.judge_net(net).arrived.value}
        measured[name] = arrived | asdict(exam.judge_net(net))
        print(name, measured[name], flush=True)
    place = args.out / "pictures" / f"{args.target}-{args.adapter}-s{args.seed}"
    write_grid(rows, place.with_suffix(".png"))
    write_json(place.with_suffix(".json"), measured)


def learned(contest: Contest) -> dict[str, Any]:
    """The teacher, a net, and factors of the students; a style is not taught anew."""
    shown, settings = AdapterSamples(contest), StudentSettings()
    found = {"delta": shown.teacher("effect"), "refine": fitted(shown, "refine", settings)[0]}
    anew, facts = fitted(shown, "reteach", settings)
    return found | ({"reteach": anew} if facts.steps else {})


if __name__ == "__main__":
    main()
