"""One adapter on one target in every way that is asked for, and what came of it, as rows.

Results stand in OUT/results/TARGET/ADAPTER-sSEED.jsonl, one arm a line. A line is kept for as long
as the base models, the adapters and the measures it came from are the same.
"""

import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.evaluation.laboratory.lm.arms import NONE, STUDENT, TRAINED, LmMoved, LmPair
from prolora_jax.evaluation.laboratory.lm.recipe import LmLesson
from prolora_jax.evaluation.laboratory.lm.texts import Documents, negative_log_likelihoods
from prolora_jax.evaluation.laboratory.lm.training import LmFactors, with_lora
from prolora_jax.evaluation.laboratory.lm.workshop import LmWorkshop
from prolora_jax.evaluation.metrics.shares import gap_share
from prolora_jax.io.documents import read_json, read_lines, write_lines
from prolora_jax.nets.lm.causal import CausalLm

_RESULTS = "results"
AT_ONCE = 16
"""Documents through the net at once."""


@dataclass(frozen=True)
class LmScores:
    """What a model says of documents.

    Attributes:
        losses: nats a token of each document.
        exact: share of documents all of whose tokens are the likeliest ones: what it would write,
            greedily.
    """

    losses: np.ndarray
    exact: float


def scores(model: CausalLm, params: Any, exam: Documents) -> LmScores:
    """Read documents.

    Args:
        model: the net.
        params: of the net.
        exam: the documents; those without tokens to be said are left out.
    """
    found, step = [], min(AT_ONCE, len(exam.ids))
    for begin in range(0, len(exam.ids), step):
        places = np.minimum(np.arange(begin, begin + step), len(exam.ids) - 1)
        part = (jnp.asarray(array[places]) for array in exam)
        kept = len(exam.ids) - begin
        found.append([np.asarray(array)[:kept] for array in _read(model, params, *part)])
    total, wrong, count = (np.concatenate(parts) for parts in zip(*found, strict=True))
    said = count > 0
    return LmScores(total[said] / count[said], float((wrong[said] == 0).mean()))


@partial(jax.jit, static_argnames=("model",))
def _read(model: CausalLm, params: Any, ids: Any, weights: Any) -> Any:
    predicted: Any = model.apply({"params": params}, ids)
    nll, counted = negative_log_likelihoods(predicted.logits, ids), weights[:, 1:]
    missed = (jnp.argmax(predicted.logits[:, :-1], axis=-1) != ids[:, 1:]).astype(jnp.float32)
    return (nll * counted).sum(axis=1), (missed * counted).sum(axis=1), counted.sum(axis=1)


class LmContest:
    """One adapter on one target.

    Attributes:
        pair: source and target.
        lesson: that the adapter was taught.
        seed: of the adapter.
    """

    def __init__(self, pair: LmPair, lesson: LmLesson, seed: int):
        self.pair, self.lesson, self.seed = pair, lesson, seed
        workshop = pair.workshop
        workshop.adapter(workshop.source, lesson, seed)
        self._trained = workshop.adapter(pair.target, lesson, seed)
        self._given = workshop.lesson(lesson, seed)
        self._own = workshop.own_documents(pair.target)
        self._none, self._upper = (self._scores(f)[0] for f in ({}, self._trained))

    def row(self, arm: str) -> dict[str, Any]:
        """Everything that is measured of one arm."""
        began = time.process_time()
        moved = self._moved(arm)
        effect, own = self._scores(moved.factors)
        share = gap_share(self._none.losses, effect.losses, self._upper.losses)
        asked = self._given.exact
        return {
            "target": self.pair.target,
            "adapter": self.lesson.name,
            "kind": self.lesson.kind,
            "seed": self.seed,
            "arm": arm,
            "arrived": list(share),
            "effect_loss": float(effect.losses.mean()),
            "own_loss": float(own.losses.mean()),
            "exact": effect.exact if asked else None,
            "none": float(self._none.losses.mean()),
            "trained": float(self._upper.losses.mean()),
            "exact_none": self._none.exact if asked else None,
            "exact_trained": self._upper.exact if asked else None,
            "moved": len(moved.factors),
            "refused": moved.refused,
            "disagreement": moved.disagreement,
            "cpu_seconds": time.process_time() - began,
        }

    def _moved(self, arm: str) -> LmMoved:
        if arm == NONE:
            return LmMoved({})
        if arm == TRAINED:
            return LmMoved(self._trained)
        return self.pair.moved(arm, self.lesson, self.seed)

    def _scores(self, factors: LmFactors) -> tuple[LmScores, LmScores]:
        made = self.pair.workshop.lm(self.pair.target)
        params = with_lora(made.params, factors)
        exam, own = (scores(made.model, params, d) for d in (self._given.exam, self._own))
        return exam, own


def run_lm(workshop: LmWorkshop) -> list[dict[str, Any]]:
    """Try everything that was not tried yet.

    Args:
        workshop: the laboratory.

    Returns:
        All results of its recipe.
    """
    lab, rows = workshop.lab, []
    for seed, target in product(lab.seeds, lab.targets):
        pair = LmPair(workshop, target)
        for lesson in lab.lessons:
            rows += _cell(pair, lesson, seed)
    return rows


def _cell(pair: LmPair, lesson: LmLesson, seed: int) -> list[dict[str, Any]]:
    workshop, lab = pair.workshop, pair.workshop.lab
    file = _file(workshop, pair.target, lesson, seed)
    known = {row["key"]: row for row in read_lines(file)}
    arms = (NONE, TRAINED, *lab.arms)
    if pair.target in lab.taught:
        arms = (*arms, STUDENT)
    keys = {lab.row_stamp(pair.target, lesson, seed, arm): arm for arm in arms}
    rows = {key: known[key] for key in keys if key in known}
    if len(rows) == len(keys):
        return list(rows.values())
    contest = LmContest(pair, lesson, seed)
    for key, arm in keys.items():
        if key not in rows:
            rows[key] = {"key": key} | contest.row(arm)
            write_lines(file, list(rows.values()))
            value, low, high = rows[key]["arrived"]
            told = f"{pair.target} {lesson.name}-s{seed} {arm}: {value:.3f} [{low:.3f}, {high:.3f}]"
            workshop.say(f"{told} {rows[key]['refused']} {rows[key]['cpu_seconds']:.1f} CPU s")
    return list(rows.values())


def _file(workshop: LmWorkshop, target: str, lesson: LmLesson, seed: int) -> Path:
    return workshop.folder / _RESULTS / target / f"{lesson.name}-s{seed}.jsonl"


def lm_results(folder: Path) -> list[dict[str, Any]]:
    """All results that stand in a laboratory's folder, of cells that are not finished, too.

    Args:
        folder: of `LmWorkshop`.

    Returns:
        Rows, with `training_seconds`: CPU seconds that the adapter took, in rows of `trained`, or
        the base model, in those of `none`.
    """
    found = []
    for file in sorted((folder / _RESULTS).glob("*/*.jsonl")):
        target = file.parent.name
        marks = {
            NONE: folder / "bases" / target / "trained.json",
            TRAINED: folder / "adapters" / target / f"{file.stem}.json",
        }
        for row in read_lines(file):
            mark = read_json(marks[row["arm"]]) if row["arm"] in marks else None
            found.append(row | {"training_seconds": (mark or {}).get("cpu_seconds", 0.0)})
    return found
