"""Training of whole language models and of adapters, by the student's own steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.evaluation.laboratory.lm.recipe import ROLES, LmModules
from prolora_jax.evaluation.laboratory.lm.texts import token_loss
from prolora_jax.nets.lm.causal import CausalLm
from prolora_jax.refine.fitting import (
    FitState,
    RefineOptions,
    factors_from_zero,
    fit,
    new_state,
    state_of,
)
from prolora_jax.refine.lm.student import LmStudentNet
from prolora_jax.refine.rows import Rows

REPORT_STEPS = 50

LmFactors = Mapping[str, tuple[Any, Any]]
"""`(down (rank, in), up (out, rank))` by module path, the scale in them."""


@dataclass(frozen=True)
class WholeLm:
    """A function `(params, ids, times, real) -> logits`, to be traced.

    Attributes:
        model: the net.
    """

    model: CausalLm

    def __call__(self, params: Any, ids: Any, times: Any, real: Any) -> jax.Array:
        """The net's logits with these parameters; times say nothing."""
        found: Any = self.model.apply({"params": params}, ids, real)
        return found.logits


def train_lm(
    model: CausalLm,
    params: Any,
    rows: Rows,
    options: RefineOptions,
    say: Callable[[str], None] = lambda line: None,
) -> Any:
    """All parameters of a net; the ones given stay as they are.

    Args:
        model: the net.
        params: to start from.
        rows: of `texts.training_rows`.
        options: steps, rate, batch, seed.
        say: called with a line now and then.
    """

    def after(now: FitState) -> None:
        step = int(now.step)
        if step % REPORT_STEPS == 0:
            loss = float(np.asarray(now.losses[step - REPORT_STEPS : step]).mean())
            say(f"step {step} of {options.steps}: {loss:.3f} nats a token")

    predict = jax.tree_util.Partial(WholeLm(model))
    start = state_of(params, options)
    state = fit(predict, rows, start, options, progress=after, error=token_loss)
    return _finite(state.factors, state.losses)


def train_lora(
    model: CausalLm, params: Any, factors: LmFactors, rows: Rows, options: RefineOptions
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Factors beside a frozen net.

    Args:
        model: the net.
        params: of the net.
        factors: to start from.
        rows: that teach.
        options: steps, rate, batch, seed.
    """
    predict = jax.tree_util.Partial(LmStudentNet(model), params)
    state = fit(predict, rows, new_state(factors, options), options, error=token_loss)
    learned = _finite(state.factors, state.losses)
    return {path: (np.asarray(down), np.asarray(up)) for path, (down, up) in learned.items()}


def new_lora(spec: BaseModelSpec, modules: LmModules, rank: int, seed: int) -> LmFactors:
    """Factors of a new adapter.

    Args:
        spec: of the model.
        modules: which layers get some.
        rank: of each.
        seed: of NumPy's generator.
    """
    wanted = {
        path: module.matrix_shape
        for path, module in spec.modules.items()
        if path.startswith(LM) and path.rpartition(".")[2] in ROLES[modules]
    }
    return factors_from_zero(wanted, rank, seed)


def with_lora(params: Any, factors: LmFactors) -> Any:
    """Parameters with updates added to their kernels; the ones given stay.

    Args:
        params: of `CausalLm`.
        factors: whose layers the net has.
    """
    tree = dict(params)
    for path, (down, up) in factors.items():
        *levels, last = path.removeprefix(LM).split(".")
        level = tree
        for name in levels:
            level[name] = dict(level[name])
            level = level[name]
        update = jnp.matmul(jnp.asarray(up), jnp.asarray(down), precision="highest").T
        level[last] = {**level[last], "kernel": level[last]["kernel"] + update}
    return tree


def _finite(found: Any, losses: Any) -> Any:
    """Refuse what has not been learned: a rate that is too high leaves numbers that are none."""
    if not np.isfinite(np.asarray(losses)).all():
        raise ValueError("the loss is no number: the recipe's rate is too high")
    return found
