"""Run by tests/refine/test_fitting.py in a process of its own, with 8 virtual CPU devices.

Fits a small student on one device and over a mesh, and prints the largest difference, and how many
of a step's rows a device has, as JSON.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from prolora_jax.errors import UsageError
from prolora_jax.refine.fitting import RefineOptions, fit, new_state
from prolora_jax.refine.rows import Rows

WIDTH, COUNT = 6, 40
seen: set[int] = set()


def net(weight: jax.Array, factors: dict, noisy: jax.Array, times: jax.Array, words: jax.Array):
    """One linear layer, that notes how its rows are spread."""
    down, up = factors["a"]
    jax.debug.inspect_array_sharding(noisy, callback=lambda s: seen.add(rows_each(s, noisy.shape)))
    return noisy @ (weight + up @ down).T


def rows_each(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> int:
    """Rows that one device has."""
    return sharding.shard_shape(shape)[0]


def main() -> None:
    """Compare one device and a mesh."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    start = {"a": (draw(2, WIDTH), draw(WIDTH, 2))}
    rows = Rows(
        draw(COUNT, WIDTH), np.zeros(COUNT, np.float32), np.zeros(COUNT, int), draw(COUNT, WIDTH)
    )
    predict = Partial(net, jnp.asarray(draw(WIDTH, WIDTH)))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    found: dict[str, object] = {"devices": len(jax.devices())}
    for name, options in {
        "difference": RefineOptions(steps=5, batch=16, rate=1e-2),
        "difference in parts": RefineOptions(steps=5, batch=32, micro_batch=16, rate=1e-2),
    }.items():
        one = fit(predict, rows, new_state(start, options), options)
        seen.clear()
        many = fit(predict, rows, new_state(start, options), options, mesh=mesh)
        found[name] = max(
            float(np.abs(np.asarray(a) - np.asarray(b)).max())
            for a, b in zip(
                jax.tree.leaves(one.factors), jax.tree.leaves(many.factors), strict=True
            )
        )
        found["rows on a device"] = sorted(seen)
    uneven = RefineOptions(batch=12)
    try:
        fit(predict, rows, new_state(start, uneven), uneven, mesh=mesh)
    except UsageError as error:
        found["refused"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
