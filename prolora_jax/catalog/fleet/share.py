"""Which part of a catalog a run does, and how."""

from dataclasses import dataclass
from hashlib import sha256

from prolora_jax.catalog.fleet.inputs import Unit

SILENCE = 600.0
"""Seconds without a sign of life after which a worker is ended; its input is to blame for it."""


@dataclass(frozen=True)
class RunShare:
    """Which part of a catalog a run does, and how.

    Attributes:
        workers: processes.
        shard: number of this part, from 0.
        shards: number of parts.
        silence: seconds without a sign of life after which a worker is ended.
        ray: address of a Ray cluster whose hosts do it, each with `workers`; None for this host.
        patience: seconds without any host of that cluster that has a worker, after which it ends.
    """

    workers: int = 1
    shard: int = 0
    shards: int = 1
    silence: float = SILENCE
    ray: str | None = None
    patience: float = 300.0

    def has(self, unit: Unit) -> bool:
        """Whether a unit is in this part, which depends on its name alone."""
        digest = sha256(unit[0].name.encode()).digest()
        return int.from_bytes(digest[:8]) % self.shards == self.shard
