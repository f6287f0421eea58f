"""Training of whole nets and of adapters, on batches that the host draws."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.evaluation.laboratory.adapters import TrainedFactors, merged
from prolora_jax.evaluation.laboratory.diffusion import Draw
from prolora_jax.evaluation.laboratory.nets import Params, forward
from prolora_jax.nets.unet.config import UNetConfig

if TYPE_CHECKING:
    import optax  # of the extra `lab`: trained models are evaluated without it

Progress = Callable[[int, float], None]
"""Called with the step and the mean loss since the last call."""
REPORT_EVERY = 100


class Budget(NamedTuple):
    """How long to train, and how boldly.

    Attributes:
        steps: number of updates.
        rate: Adam's highest learning rate; it falls to nothing along a cosine.
        warm_up: steps until that rate is reached.
    """

    steps: int
    rate: float
    warm_up: int = 20


@cache
def _optimizer(budget: Budget) -> "optax.GradientTransformation":
    import optax

    rate = optax.warmup_cosine_decay_schedule(
        0.0, budget.rate, min(budget.warm_up, budget.steps // 2), budget.steps
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


@cache
def _gradient(config: UNetConfig, *, of_adapter: bool) -> Any:
    """Compiled once per net: budgets differ only in the optimizer, which is compiled apart."""
    apply = forward(config)

    def loss(trained: Any, fixed: Any, batch: Any) -> jax.Array:
        params = merged(fixed, trained) if of_adapter else trained
        return jnp.mean((apply(params, batch.noisy, batch.times, batch.words) - batch.target) ** 2)

    return jax.jit(jax.value_and_grad(loss))


@cache
def _update(budget: Budget) -> Any:
    import optax

    optimizer = _optimizer(budget)

    def update(trained: Any, state: Any, gradient: Any) -> Any:
        # optax raises a Python number to the power of a counter.
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, change), state

    return jax.jit(update, donate_argnums=(0, 1))


def train_net(
    config: UNetConfig,
    params: Params,
    draw: Draw,
    budget: Budget,
    seed: int,
    progress: Progress | None = None,
) -> Params:
    """All parameters of a net; the ones given stay as they are."""
    return _train(config, params, {}, draw, budget, seed, progress, of_adapter=False)


def train_adapter(
    config: UNetConfig,
    params: Params,
    factors: Mapping[str, TrainedFactors],
    draw: Draw,
    budget: Budget,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, TrainedFactors]:
    """The factors of an adapter beside a frozen net."""
    return _train(config, dict(factors), params, draw, budget, seed, progress, of_adapter=True)


def _train(
    config: UNetConfig,
    start: Any,
    fixed: Any,
    draw: Draw,
    budget: Budget,
    seed: int,
    progress: Progress | None,
    *,
    of_adapter: bool,
) -> Any:
    rng = np.random.default_rng(seed)
    trained = jax.tree.map(jnp.copy, start)  # the update overwrites what it is given
    state = _optimizer(budget).init(trained)
    gradient_of, update = _gradient(config, of_adapter=of_adapter), _update(budget)
    losses = []
    for step in range(1, budget.steps + 1):
        loss, gradient = gradient_of(trained, fixed, draw(rng))
        trained, state = update(trained, state, gradient)
        losses.append(loss)
        if progress and (step % REPORT_EVERY == 0 or step == budget.steps):
            progress(step, float(np.mean(losses)))
            losses = []
    return trained
