"""The devices that a refinement is spread over."""

from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from prolora_jax.nets.pipelines.devices import DATA_AXIS


@runtime_checkable
class SharedOut(Protocol):
    """A recipe that knows over how many devices its rows are spread."""

    def shares(self, devices: int) -> int:
        """How many of so many devices get rows: each as many."""
        ...


def mesh_for(recipe: SharedOut) -> Mesh | None:
    """All devices of this process, or as many as the rows of a step can be shared out to evenly.

    Args:
        recipe: how many rows a step has, and how many of them a device takes at once.

    Returns:
        None where one device does everything.
    """
    devices = jax.local_devices()
    used = recipe.shares(len(devices))
    return None if used == 1 else Mesh(np.array(devices[:used]), (DATA_AXIS,))
