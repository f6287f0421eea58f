"""Run by test_across_processes.py three times at once, as one mesh of six virtual CPU devices.

Each process has a store of its own, which has other weights in it than the others'. Prints what it
did and what it read as JSON; leaves its store behind.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from prolora_jax.errors import ProloraError
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.method.basis import BasisRule
from prolora_jax.subspaces import on_devices
from prolora_jax.subspaces.compute import compute_subspaces

PROCESSES = 3


class Counted(FolderStore):
    """A store that notes what it is given; `trouble` comes over it at the second weight."""

    trouble = ""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.given: list[str] = []

    def put(self, fingerprint: str, basis) -> None:
        """See `BasisStore`."""
        if len(self.given) == 1 and self.trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(self.given) == 1 and self.trouble == "full":
            raise OSError("no space left")
        super().put(fingerprint, basis)
        self.given.append(fingerprint)


def main() -> None:
    """Take part."""
    number, address, model, stores, trouble = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Who is first to compile would give its program, with its own devices in it, to the others.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.distributed.initialize(address, PROCESSES, int(number), heartbeat_timeout_seconds=10)
    on_devices.ROWS_BYTES = 4 * 24 * 96 - 1  # two tall weights and a wide one go by their rows
    on_devices.STACK_BYTES = 4 * 24 * 24
    read: list[tuple[str, tuple[int, int] | None]] = []
    real = BaseModel.matrix

    def matrix(self: BaseModel, path: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        read.append((path, rows))
        return real(self, path, rows)

    BaseModel.matrix = matrix
    opened = load_base_model(model)
    paths = list(opened.spec.modules)
    store = Counted(Path(stores) / number)
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    told, failed = [], []

    def compute(asked: list[str]) -> None:
        rule = BasisRule("rank", 24.0)
        try:
            compute_subspaces(opened, asked, store, rule, lambda *now: told.append(now), mesh=mesh)
        except (ProloraError, OSError) as error:
            failed.append(str(error))

    if trouble == "full":
        compute(paths[1:] if number == "1" else paths)  # another list than the others'
    store.trouble = trouble if number == "1" else ""
    compute(paths)
    print(json.dumps({"given": store.given, "told": len(told), "read": read, "failed": failed}))


if __name__ == "__main__":
    main()
