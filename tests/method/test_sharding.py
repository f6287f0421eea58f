"""The batched projection over a mesh of 8 devices gives what one device gives.

In a process of its own: virtual devices are set before JAX starts, and more devices than threads
deadlock in batched LAPACK calls unless NPROC says otherwise (measured; hence the time-out, too).
"""

from pathlib import Path

from eight_devices import found_by

from prolora_jax.method.operators import METHODS

SHARE = 1e-6  # of ||dW||: float32 sums in another order
SCRIPT = Path(__file__).parents[1].joinpath("support", "sharded_projection.py")


def test_adapters_over_eight_devices():
    found = found_by(SCRIPT)
    assert found.pop("devices") == 8
    assert len(found) == 2 * len(METHODS[1:])
    assert {name: error for name, error in found.items() if not error <= SHARE} == {}
