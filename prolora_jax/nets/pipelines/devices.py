"""Pictures spread over devices: each device has the nets, and an equal share of a batch."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
"""Of a mesh that pictures or rows are spread over."""


def mesh_of_all() -> Mesh | None:
    """All devices of this process, for pictures to be spread over; None where it has one."""
    devices = jax.local_devices()
    return Mesh(np.array(devices), (DATA_AXIS,)) if len(devices) > 1 else None


def devices_of(mesh: Mesh | None) -> int:
    """Over how many devices a batch is spread; one without a mesh."""
    return 1 if mesh is None else mesh.shape[DATA_AXIS]


def on_all(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays, such as parameters, on every device of a mesh.

    Args:
        tree: of arrays.
        mesh: devices; None leaves the tree as it is.

    Returns:
        The tree; what was split over these devices stays so, of everything else there is a copy on
        each.
    """
    if mesh is None:
        return tree
    devices = set(mesh.devices.flat)

    def placed(leaf: Any) -> jax.Array:
        now, spec = getattr(leaf, "sharding", None), PartitionSpec()
        if isinstance(now, NamedSharding) and now.device_set == devices:
            spec = now.spec if set(now.mesh.axis_names) <= set(mesh.axis_names) else spec
        # Also where nothing moves: the array's own mesh may have axes of another type.
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(placed, tree)


def each_a_share(rows: Any, mesh: Mesh | None) -> Any:
    """Arrays with a row for each picture, of which each device gets an equal share."""
    if mesh is None:
        return rows
    return jax.device_put(rows, NamedSharding(mesh, PartitionSpec(DATA_AXIS)))
