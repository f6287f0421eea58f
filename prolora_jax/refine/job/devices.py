"""The devices that a refinement is spread over."""

import jax
import numpy as np
from jax.sharding import Mesh

from prolora_jax.nets.pipelines.devices import DATA_AXIS
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
