"""Run by test_sharding.py in a process of its own, with 8 virtual CPU devices.

Projects one batch of layers (and of adapters) on one device and over a mesh, and prints the
largest difference as a share of each update's norm, by arm, as JSON.
"""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prolora_jax.lora import Factors
from prolora_jax.projection import METHODS, Projected, SideOperator, prepare_side, project_batch

LAYERS, ADAPTERS, OUT, IN, RANK = 16, 3, 40, 56, 8


def operators(rng: np.random.Generator, dim: int) -> SideOperator:
    """Operators of `LAYERS` layers with different k, padded to one width."""
    sides = []
    for layer in range(LAYERS):
        k_s, k_t = 10 + layer, 10 + (layer * 7) % 16
        base, _ = np.linalg.qr(rng.normal(size=(dim, 26)))
        turned, _ = np.linalg.qr(base + 0.1 * rng.normal(size=base.shape))
        sides.append(prepare_side(base[:, :k_s], turned[:, :k_t], width=26))
    return SideOperator(*(jnp.asarray(np.stack(a)) for a in zip(*sides, strict=True)))


def dense(result: Projected) -> np.ndarray:
    """Updates `(..., out, in)`, float64."""
    down, up = (np.asarray(a, np.float64) for a in result.factors)
    return up @ down


def main() -> None:
    """Compare one device, a mesh, and adapters one by one."""
    rng = np.random.default_rng(0)
    left, right = operators(rng, OUT), operators(rng, IN)
    shape = (ADAPTERS, LAYERS)
    factors = Factors(
        jnp.asarray(rng.normal(size=(*shape, RANK, IN)), jnp.float32),
        jnp.asarray(rng.normal(size=(*shape, OUT, RANK)), jnp.float32),
    )
    norms = np.linalg.norm(np.asarray(factors.up @ factors.down), axis=(-2, -1))
    mesh = Mesh(np.array(jax.devices()), ("layers",))

    def spread(tree: SideOperator | Factors, axis: int):
        """Split the layer axis over the mesh."""
        spec = PartitionSpec(*[None] * axis, "layers")
        return jax.device_put(tree, NamedSharding(mesh, spec))

    found: dict[str, float] = {"devices": jax.device_count()}
    for method in METHODS:
        for compressed in (False, True):
            jax.config.update("jax_enable_x64", compressed)  # as `execute` has it
            run = partial(project_batch, method, compressed=compressed)
            over_adapters = jax.jit(jax.vmap(run, in_axes=(None, None, 0)))
            single = [run(left, right, Factors(*(a[i] for a in factors))) for i in range(ADAPTERS)]
            expected = np.stack([dense(result) for result in single])
            together = over_adapters(left, right, factors)
            sharded = over_adapters(spread(left, 0), spread(right, 0), spread(factors, 1))
            if len(sharded.factors.up.sharding.device_set) != jax.device_count():
                sys.exit(f"{method}: the result is not spread over the devices")
            error = max(
                float(np.max(np.linalg.norm(dense(r) - expected, axis=(-2, -1)) / norms))
                for r in (together, sharded)
            )
            found[f"{method}{' compressed' if compressed else ''}"] = error
    print(json.dumps(found))


if __name__ == "__main__":
    main()
