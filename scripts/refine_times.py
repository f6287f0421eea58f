"""What the phases of `refine` take on the laboratory's nets: CPU seconds, beside the rows they ask.

    python scripts/refine_times.py --out docs/benchmarks/refine_laboratory.json

The nets and the style are the demo's, the numbers those of the command: 128 pictures, 512 rows, 100
steps of 32. Each phase is timed twice in one process; the first time compiles. A cost model that
counts rows (docs/benchmarks.md) is right if a row costs about the same in every phase of a net, and
a row of the student's step a fixed multiple of it.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.tree_util import Partial

from prolora_jax.evaluation.demo import SEED, SOURCE, STYLE, TARGET, demo_contest
from prolora_jax.evaluation.laboratory.data import NULL
from prolora_jax.evaluation.laboratory.pair_samples import JUDGED, STEPS
from prolora_jax.evaluation.laboratory.refining import AdapterSamples, student_net
from prolora_jax.evaluation.laboratory.trials import Contest, Pair
from prolora_jax.io.atomic import write_text
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.refine.fitting import RefineOptions, fit, new_state
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.triggers import NOISES

Timed = Callable[[str, int, Callable[[], Any]], Any]
"""Called with a phase's name, the rows that it asks, and the phase."""


def phases(timed: Timed, contest: Contest, recipe: RefineRecipe) -> None:
    """A refinement, phase after phase.

    Args:
        timed: runs a phase and notes what it took.
        contest: the style on the pruned net; its samples are not drawn yet.
        recipe: how many pictures and rows.
    """
    shown, pair = AdapterSamples(contest), contest.pair
    samples, drawn = pair.samples, recipe.pictures * STEPS
    timed("target draws T", drawn, lambda: samples.pool_of_target)
    timed("source draws S", drawn, lambda: samples.pool_of_source)
    timed("four losses: R", 4 * JUDGED, lambda: samples.losses)
    timed("words", 2 * NULL * NOISES, lambda: shown.effects)
    timed("source with the adapter draws A", drawn, lambda: shown.pool)
    rows = timed(
        "three answers to all rows",
        3 * recipe.rows,
        lambda: shown.refine_rows("effect", recipe.rows),
    )
    start, _ = pair.moved(contest.adapter, contest.seed, MigrationOptions(method="copy"))
    workshop, options = pair.workshop, RefineOptions(batch=recipe.batch)
    net = Partial(student_net(workshop.config(pair.target)), workshop.params(pair.target))

    def learned() -> np.ndarray:
        return np.asarray(fit(net, rows, new_state(start, options), options).losses)

    timed("student", options.steps * options.batch, learned)


def measured(recipe: RefineRecipe) -> dict[str, dict[str, float]]:
    """CPU seconds of each phase, the first time and again.

    Args:
        recipe: how many pictures and rows.
    """
    found: dict[str, dict[str, float]] = {}
    for round_ in ("first", "again"):

        def timed(name: str, rows: int, phase: Callable[[], Any], round_: str = round_) -> Any:
            began = time.process_time()
            made = phase()
            seconds = time.process_time() - began
            one = found.setdefault(name, {"rows": rows})
            one[f"{round_}_s"] = seconds
            one["ms_a_row"] = 1000 * seconds / rows
            return made

        workshop = demo_contest().pair.workshop  # a new one: it remembers what nets have answered
        pair = Pair(workshop, TARGET, SOURCE, None, recipe.pictures)
        phases(timed, Contest(pair, STYLE, SEED), recipe)
    return found


def main() -> None:
    """Measure, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    text = json.dumps(measured(RefineRecipe()), indent=1) + "\n"
    print(text, end="")
    if asked.out is not None:
        write_text(asked.out, text)


if __name__ == "__main__":
    main()
