"""The devices that a refinement is spread over: rows go round them, and each has the whole net."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prolora_jax.refine.fitting import DATA_AXIS
from prolora_jax.refine.job.recipe import RefineRecipe


def mesh_for(recipe: RefineRecipe) -> Mesh | None:
    """All devices of this process, or as many as the rows of a step can be shared out to evenly.

    Args:
        recipe: how many rows a step has, and how many of them a device takes at once.

    Returns:
        None where one device does everything.
    """
    devices = jax.local_devices()
    used = recipe.shares(len(devices))
    return None if used == 1 else Mesh(np.array(devices[:used]), (DATA_AXIS,))


def devices_of(mesh: Mesh | None) -> int:
    """How many devices there are."""
    return 1 if mesh is None else mesh.size


def on_all(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays, such as parameters, with a copy on each device."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def each_a_share(rows: Any, mesh: Mesh | None) -> Any:
    """Arrays with a row for each picture, of which each device gets an equal share."""
    if mesh is None:
        return rows
    return jax.device_put(rows, NamedSharding(mesh, PartitionSpec(DATA_AXIS)))
