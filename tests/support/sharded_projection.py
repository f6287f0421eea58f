"""Run by test_sharding.py in a process of its own, with 8 virtual CPU devices.

Projects the columns of a batch of adapters on one device and over a mesh, and prints the largest
difference as a share of each update's norm, by arm, as JSON.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prolora_jax.method.energies import measure
from prolora_jax.method.operators import METHODS, Method, Side, Span, prepare_side
from prolora_jax.method.projection import FileFactors, apply_side, to_file_factors
from prolora_jax.method.singular import gauge, union

ADAPTERS, OUT, IN, RANK = 16, 40, 56, 8


def prepared(rng: np.random.Generator, method: Method, dim: int) -> Side:
    """One side of an arm for two related spans of different rank."""
    base, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    turned, _ = np.linalg.qr(base + 0.1 * rng.normal(size=base.shape))
    return prepare_side(method, Span(base[:, :17], base[:, 17:]), Span(turned[:, :13]))


def dense(stored: FileFactors) -> np.ndarray:
    """Updates `(adapters, out, in)`, float64."""
    up, down = (np.asarray(a, np.float64) for a in (stored.up, stored.down))
    return up @ down


def main() -> None:
    """Compare one device and a mesh."""
    rng = np.random.default_rng(0)
    ups = jnp.asarray(rng.normal(size=(ADAPTERS, RANK, OUT)), jnp.float32)
    downs = jnp.asarray(rng.normal(size=(ADAPTERS, RANK, IN)), jnp.float32)
    ones = jnp.ones(ADAPTERS, jnp.float32)
    norms = np.linalg.norm(
        dense(to_file_factors((ups,), (downs,), None, ones, "float32")), axis=(1, 2)
    )
    mesh = Mesh(np.array(jax.devices()), ("adapters",))
    spread = NamedSharding(mesh, PartitionSpec("adapters"))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def run(sides: tuple[Side, Side], rows: tuple[jax.Array, jax.Array], compressed: bool):
        with jax.enable_x64(compressed):
            # Device arrays stand in for the host's: jit takes either.
            left, right = (
                apply_side(side.form, side.operator, block, compressed)
                for side, block in zip(sides, rows, strict=True)
            )
        grams = jax.device_get((left.grams, right.grams))
        mixing = None
        if compressed:
            parts = zip(grams[0].parts, grams[1].parts, strict=True)
            form = union([gauge(up, down) for up, down in parts])
            mixing = form.up.astype(np.float32), form.down.astype(np.float32)
        return to_file_factors(left.parts, right.parts, mixing, ones, "float32"), measure(*grams)

    found: dict[str, float] = {"devices": jax.device_count()}
    for method in METHODS[1:]:
        sides = prepared(rng, method, OUT), prepared(rng, method, IN)
        placed = jax.tree.map(
            lambda leaf: jax.device_put(leaf, everywhere) if isinstance(leaf, np.ndarray) else leaf,
            sides,
        )
        rows = ups, downs
        spread_rows = jax.device_put(ups, spread), jax.device_put(downs, spread)
        for compressed in (False, True):
            single, norms_single = run(sides, rows, compressed)
            sharded, norms_sharded = run(placed, spread_rows, compressed)
            if len(sharded.up.sharding.device_set) != jax.device_count():
                sys.exit(f"{method}: the result is not spread over the devices")
            error = np.linalg.norm(dense(sharded) - dense(single), axis=(1, 2)) / norms
            energies = np.array(norms_sharded.energies) - np.array(norms_single.energies)
            worst = max(error.max(), np.abs(energies / np.square(norms)).max())
            found[f"{method}{' compressed' if compressed else ''}"] = float(worst)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
