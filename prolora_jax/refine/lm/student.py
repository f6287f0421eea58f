"""The target with factors as an argument, and how far it is from the answers."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from prolora_jax.nets.adapters.adapted import adapted
from prolora_jax.nets.lm.adapting import beside
from prolora_jax.nets.lm.causal import CausalLm
from prolora_jax.nets.pipelines.devices import each_a_share, on_all
from prolora_jax.refine.lm.answers import TopAnswers, divergence
from prolora_jax.refine.lm.pools import Texts, WritingModel
from prolora_jax.refine.rows import Rows

NAME = "student"


@dataclass(frozen=True)
class LmStudentNet:
    """A function `(params, factors, ids, times, real) -> logits`, to be traced.

    Attributes:
        model: the target; layers are computed again on the way back.
    """

    model: CausalLm

    def __call__(self, params: Any, factors: Any, ids: Any, times: Any, real: Any) -> jax.Array:
        """The target's logits with these factors beside its kernels; times say nothing."""
        with adapted({NAME: 1.0}):
            found: Any = self.model.apply({"params": beside(params, NAME, factors)}, ids, real)
        return found.logits


def lm_student(target: WritingModel) -> jax.tree_util.Partial:
    """The target as `fitting.fit` takes it: `predict(factors, ids, times, real) -> logits`."""
    net = LmStudentNet(target.model.clone(remat=True))
    return jax.tree_util.Partial(net, target.params)


def lesson(texts: Texts, wanted: TopAnswers) -> Rows:
    """Texts and answers as rows; their times are zeros."""
    times = np.zeros(len(texts.ids), np.float32)
    return Rows(texts.ids, times, texts.real, wanted)


def missed(predict: Any, factors: Any, rows: Rows, at_once: int, mesh: Mesh | None = None) -> float:
    """Divergence of a student from the answers to all rows, in nats a token.

    Args:
        predict: of `lm_student`.
        factors: of the student.
        rows: texts and answers.
        at_once: rows that are asked at once.
        mesh: devices that they are spread over, each with as many.
    """
    total, count, last = 0.0, 0.0, len(rows.times) - 1
    factors = on_all(factors, mesh)
    for begin in range(0, len(rows.times), at_once):
        places = np.arange(begin, begin + at_once)
        part = jax.tree.map(lambda a, p=places: np.asarray(a)[np.minimum(p, last)], rows)
        # One program for all: the last row fills the last part up, and does not count again.
        part.target.counts[places > last] = 0.0
        weight = float(part.target.counts.sum())
        total += weight * float(_apart(predict, factors, each_a_share(part, mesh)))
        count += weight
    return total / max(count, 1.0)


@jax.jit
def _apart(predict: Any, factors: Any, rows: Rows) -> jax.Array:
    said = predict(factors, rows.noisy, rows.times, rows.conditioning)
    return divergence(said, rows.target)
