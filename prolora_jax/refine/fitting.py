"""The student: Adam on LoRA factors, resumable after any step, over a mesh (docs/refine.md 5).

A net is a function `predict(factors, noisy, times, conditioning) -> prediction` that jax can trace.
Its parameters are best given with it, `jax.tree_util.Partial(function, params)`: then they are
arguments of the compiled step, which all nets of a shape share, not constants in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.nets.pipelines.devices import DATA_AXIS
from prolora_jax.refine.rows import Rows

Predict = Callable[[Any, Any, Any, Any], Any]
Error = Callable[[Any, Any], Any]
"""How far what a net says is from what is wanted: the mean over rows, one number."""
Factors = Mapping[str, tuple[Any, Any]]
"""`(down (rank, in), up (out, rank))` by module; the scale is in them."""


@dataclass(frozen=True)
class RefineOptions:
    """How a student is fitted.

    Attributes:
        steps: number of updates.
        rate: Adam's highest learning rate; it falls to nothing along a cosine.
        batch: rows of an update, drawn with replacement.
        warm_up: steps until that rate is reached; at most half of all.
        clip: largest norm of a gradient.
        seed: of the rows that each step draws.
        micro_batch: rows that go through the net at once; all of a batch if 0.
    """

    steps: int = 100
    rate: float = 2e-3
    batch: int = 32
    warm_up: int = 20
    clip: float = 1.0
    seed: int = 0
    micro_batch: int = 0

    def __post_init__(self):
        if self.steps < 1 or self.batch < 1:
            raise UsageError(
                f"refine: nothing would be fitted. Got {self.steps} steps of {self.batch} rows; "
                "expected at least one of each. Give more.",
                code=Refusal.BAD_OPTION,
            )
        if self.micro_batch < 0 or (self.micro_batch and self.batch % self.micro_batch):
            raise UsageError(
                f"refine: a batch cannot be cut into micro-batches. Got {self.batch} rows and "
                f"{self.micro_batch} at once; expected a divisor of {self.batch}, or 0. "
                "Choose another micro-batch.",
                code=Refusal.BAD_OPTION,
            )

    @property
    def parts(self) -> int:
        """Micro-batches of a batch."""
        return self.batch // self.micro_batch if self.micro_batch else 1

    def rate_at(self, step: int) -> np.float32:
        """The learning rate of a step, the first one 0: a line to `rate`, then half a cosine."""
        warm = min(self.warm_up, self.steps // 2)
        if step < warm:
            return np.float32(self.rate * step / warm)
        done = min(1.0, (step - warm) / (self.steps - warm))
        return np.float32(self.rate * (1 + np.cos(np.pi * done)) / 2)


FROM_ZERO = RefineOptions(steps=300, rate=5e-3)
"""For strangers, and where nothing can be copied."""
RETEACH = RefineOptions(steps=200)


class FitState(NamedTuple):
    """All that the next step depends on; a tree of arrays, to be kept after any step.

    Attributes:
        factors: float32.
        moments: Adam's.
        step: updates done.
        key: of the rows to come.
        losses: of each step; zero for those to come.
    """

    factors: Any
    moments: Any
    step: Any
    key: Any
    losses: Any


def squared_error(said: Any, wanted: Any) -> Any:
    """Mean of the squared differences, in float32."""
    return jnp.mean((said.astype(jnp.float32) - wanted.astype(jnp.float32)) ** 2)


def balanced(factors: Factors) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same products from factors of equal norm, float32.

    Adam moves all numbers by about as much: with unequal factors, the small one would turn while
    the large one stands still. A factor of zeros leaves its partner as it is.

    Args:
        factors: to start from.

    Returns:
        As many modules.
    """
    made = {}
    for path, pair in factors.items():
        down, up = (np.asarray(array, np.float64) for array in pair)
        norms = np.linalg.norm(down), np.linalg.norm(up)
        turn = np.sqrt(norms[1] / norms[0]) if min(norms) > 0 else 1.0
        made[path] = ((down * turn).astype(np.float32), (up / turn).astype(np.float32))
    return made


def factors_from_zero(
    shapes: Mapping[str, tuple[int, int]], rank: int, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Factors that change nothing yet: `down` normal with variance 1 / in, `up` zero.

    Args:
        shapes: `(out, in)` by module.
        rank: of every module.
        seed: of NumPy's generator.

    Returns:
        float32.
    """
    rng = np.random.default_rng(seed)
    return {
        path: (
            (rng.standard_normal((rank, width)) / np.sqrt(width)).astype(np.float32),
            np.zeros((out, rank), np.float32),
        )
        for path, (out, width) in shapes.items()
    }


def new_state(factors: Factors, options: RefineOptions) -> FitState:
    """The state before the first step.

    Args:
        factors: to start from; balanced here.
        options: how the student will be fitted.

    Returns:
        The state.
    """
    return state_of(balanced(factors), options)


def state_of(start: Any, options: RefineOptions) -> FitState:
    """The state before the first step, of any tree of parameters.

    Args:
        start: arrays in float32.
        options: how they will be fitted.

    Returns:
        The state.
    """
    start = jax.tree.map(jnp.asarray, start)
    key = jax.random.key_data(jax.random.key(options.seed))
    losses = jnp.zeros(options.steps, jnp.float32)
    return FitState(start, _optimizer(options.clip).init(start), jnp.int32(0), key, losses)


def fit(
    predict: Predict,
    rows: Rows,
    state: FitState,
    options: RefineOptions,
    *,
    until: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[FitState], None] | None = None,
    error: Error = squared_error,
) -> FitState:
    """Take the steps that are missing.

    The same state, rows and options give the same bits, in one go or in several.

    Args:
        predict: the target's net (see above).
        rows: all that can be drawn.
        state: from `new_state`, or one that was kept; it is left as it is.
        options: the same for all steps.
        until: stop after so many updates in all; after all of them if None.
        mesh: with an axis `DATA_AXIS`, over which the rows of a step are spread.
        progress: called with the state after each step; what it keeps it has to copy.
        error: that is made small.

    Returns:
        The state after the last step.

    Raises:
        UsageError: rows of a step cannot be spread over the mesh.
    """
    at_once = options.micro_batch or options.batch
    if mesh is not None and at_once % mesh.shape[DATA_AXIS]:
        raise UsageError(
            f"refine: rows cannot be spread over devices. Got {at_once} rows at once and "
            f"{mesh.shape[DATA_AXIS]} devices; expected a multiple. Choose another batch.",
            code=Refusal.BAD_OPTION,
        )
    net = predict if isinstance(predict, jax.tree_util.Partial) else _as_tree(predict)
    state = jax.tree.map(jnp.copy, state)  # a step overwrites what it is given
    if mesh is not None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        state, rows, net = jax.device_put((state, rows, net), everywhere)
    else:
        rows = jax.tree.map(jnp.asarray, rows)
    for step in range(int(state.step), options.steps if until is None else until):
        state = _step(
            state,
            rows,
            net,
            options.rate_at(step),
            batch=options.batch,
            parts=options.parts,
            clip=options.clip,
            mesh=mesh,
            error=error,
        )
        if progress:
            progress(state)
    return state


def require_numbers(arrays: Any, what: str) -> None:
    """Refuse what is to be learned, or was, where it holds no numbers.

    Args:
        arrays: a tree of them.
        what: file and quantity, for the message.

    Raises:
        AdapterRefused: one has NaN or an infinite number.
    """
    if all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(arrays)):
        return
    raise AdapterRefused(
        f"{what}: found NaN or infinite numbers; expected finite ones, which can be learned; try "
        "--dtype float32, or use `prolora migrate`",
        code=Refusal.NON_FINITE,
    )


def require_optax() -> Any:
    """The library of optimizers: of an extra, as who only moves adapters does without.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import optax
    except ImportError as missing:
        raise UsageError(
            "refine: found no optax; expected it to be installed; "
            "pip install 'prolora_jax[pipelines,refine]'",
            code=Refusal.MISSING_LIBRARY,
        ) from missing
    return optax


def _as_tree(predict: Predict) -> Any:
    return jax.tree_util.Partial(predict)


def _optimizer(clip: float) -> Any:
    optax = require_optax()
    return optax.chain(optax.clip_by_global_norm(clip), optax.scale_by_adam())


def loss_and_gradient(
    predict: Predict, factors: Any, rows: Rows, *, parts: int = 1, error: Error = squared_error
) -> tuple[Any, Any]:
    """Error of a student, and its gradient, the mean over micro-batches.

    Args:
        predict: the target's net.
        factors: of the student.
        rows: all are used.
        parts: micro-batches; a divisor of the number of rows.
        error: of what the student says.

    Returns:
        The loss, and a tree like `factors`.
    """

    def loss(factors: Any, part: Rows) -> Any:
        said = predict(factors, part.noisy, part.times, part.conditioning)
        return error(said, part.target)

    both = jax.value_and_grad(loss)
    if parts == 1:
        return both(factors, rows)
    cut = jax.tree.map(lambda a: a.reshape(parts, a.shape[0] // parts, *a.shape[1:]), rows)

    def add(total: Any, part: Rows) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, both(factors, part)), None

    nothing = jnp.float32(0), jax.tree.map(jnp.zeros_like, factors)
    total, _ = jax.lax.scan(add, nothing, cut)
    return jax.tree.map(lambda a: a / parts, total)


@partial(
    jax.jit,
    static_argnames=("batch", "parts", "clip", "mesh", "error"),
    donate_argnames=("state",),
)
def _step(
    state: FitState,
    rows: Rows,
    net: Any,
    rate: Any,
    *,
    batch: int,
    parts: int,
    clip: float,
    mesh: Mesh | None,
    error: Error,
) -> FitState:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    places = jax.random.randint(key, (batch,), 0, rows.times.shape[0])
    drawn = jax.tree.map(lambda a: a[places], rows)
    if mesh is not None:
        # Micro-batches follow each other, so each of them is spread: rows go round the devices.
        spread = NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))
        drawn = jax.tree.map(lambda a: _spread(a, parts, spread), drawn)
    loss, gradient = loss_and_gradient(net, state.factors, drawn, parts=parts, error=error)
    # optax raises a Python number to the power of a counter.
    with jax.numpy_dtype_promotion("standard"):
        change, moments = _optimizer(clip).update(gradient, state.moments)
    factors = jax.tree.map(lambda a, b: a - rate * b, state.factors, change)
    losses = state.losses.at[state.step].set(loss)
    return FitState(factors, moments, state.step + 1, state.key, losses)


def _spread(array: Any, parts: int, sharding: NamedSharding) -> Any:
    cut = array.reshape(parts, array.shape[0] // parts, *array.shape[1:])
    return jax.lax.with_sharding_constraint(cut, sharding).reshape(array.shape)
