"""What a driver and its workers say to each other; a driver need not know what workers are made of.

Arithmetic is the workers': JAX would take a driver, which is there for as long as they are, longer
to start and twice the memory.
"""

from typing import NamedTuple

from prolora_jax.catalog.fleet.inputs import FleetInput
from prolora_jax.catalog.fleet.job import OWN
from prolora_jax.catalog.fleet.receipts import Known

PARTS = f"{OWN}/pairs"
"""What workers have measured of the pair, each its part."""


class ChunkWork(NamedTuple):
    """What a worker is given.

    Attributes:
        inputs: of a chunk, those of one unit behind each other.
        before: receipts of earlier runs, by names.
        together: whether their receipts are one object.
    """

    inputs: tuple[FleetInput, ...]
    before: dict[str, Known]
    together: bool = False


class ChunkDone(NamedTuple):
    """What a worker has done.

    Attributes:
        states: of inputs, by their names, as their receipts say.
        left: names of inputs without a receipt: this host, and not the input, is in their way, or
            the worker was to end early.
        trouble: what is in their way.
    """

    states: dict[str, str]
    left: tuple[str, ...] = ()
    trouble: str | None = None
