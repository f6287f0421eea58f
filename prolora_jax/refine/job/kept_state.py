"""The state of a fit on the disk, so that a job that was killed goes on where it was."""

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.io.outputs.work_folder import WorkFolder
from prolora_jax.refine.fitting import FitState

_NAME = "student"
KEPT_EVERY = 10
"""Steps after which the fit's state is written."""


def kept_state(work: WorkFolder, new: FitState) -> FitState:
    """The state that was kept last; `new` where none of its form is there."""
    leaves, shape = jax.tree.flatten(new)
    kept = work.load(_NAME)
    if kept is None or len(kept) != len(leaves):
        return new
    arrays = [jnp.asarray(kept[f"{i:05}"]) for i in range(len(kept))]
    return jax.tree.unflatten(shape, arrays)


def keep_state(work: WorkFolder, state: FitState, steps: int) -> None:
    """Keep the state after some steps, and after the last.

    Args:
        work: the folder of the adapter.
        state: after a step.
        steps: in all.
    """
    step = int(state.step)
    if step % KEPT_EVERY == 0 or step == steps:
        leaves = jax.tree.leaves(state)
        work.save(_NAME, {f"{i:05}": np.asarray(leaf) for i, leaf in enumerate(leaves)})
