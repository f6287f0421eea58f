"""A Ray cluster on this machine: a head without cores, and hosts of one core each; drivers of runs.

Workers are those of `fleet_workers`; each leaves a note of its process and of its host. Nothing of
all this outlives `close`: every process is ended by its id.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fleet_workers
import pytest
from fleet_workers import ToyWorker
from patience import UNTIL_HUNG
from ray import get_runtime_context
from ray.cluster_utils import Cluster

from prolora_jax.catalog.fleet.chunk import ChunkDone, ChunkWork

SUPPORT = Path(fleet_workers.__file__).parent
PATHS = [str(SUPPORT.parents[1]), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
SETTINGS = {
    "PYTHONPATH": os.pathsep.join(PATHS),
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The dead are noticed in seconds: of hosts by the head, of the head by hosts.
    "RAY_health_check_period_ms": "1000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
SMALL = {"object_store_memory": 80 * 2**20}


class RayHosts:
    """A cluster.

    Args:
        patch: for the environment, which all of its processes get.
    """

    def __init__(self, patch: pytest.MonkeyPatch):
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        # Hosts of a user keep what they compile beside the job's store, and have no such folder.
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        head = {"num_cpus": 0, "include_dashboard": False, **SMALL}
        with own_sigterm():
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        head_node: Any = self._cluster.head_node
        self._head, self._session = head_node, str(head_node.get_session_dir_path())
        self.nodes: list[Any] = []

    def add(self, count: int = 1) -> None:
        """Have more hosts, at last."""
        for last in [False] * (count - 1) + [True]:
            with own_sigterm():
                self.nodes.append(self._cluster.add_node(wait=last, num_cpus=1, **SMALL))

    def kill(self, number: int) -> str:
        """Kill what Ray has of a host, as the loss of it would; returns its id."""
        for process in self.nodes[number].all_processes["raylet"]:
            os.kill(process.process.pid, signal.SIGKILL)
        return self.nodes[number].node_id

    def kill_head(self) -> None:
        for processes in self._head.all_processes.values():
            for process in processes:
                process.process.kill()

    def processes(self) -> list[int]:
        """Of this session: their logs or sockets are in its folder."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                opened = [os.readlink(one) for one in (place / "fd").iterdir()]
                words = [(place / "cmdline").read_bytes().decode(errors="replace"), *opened]
                if any(self._session in one for one in words):
                    found.append(int(place.name))
        return [pid for pid in found if pid != os.getpid() and alive(pid)]

    def close(self) -> None:
        self._cluster.shutdown()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes())


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Ray puts its own handler there for every host that it starts."""
    usual = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + UNTIL_HUNG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def notes(inputs: Path) -> dict[int, str]:
    """Workers that have got ready: their processes, and their hosts."""
    return {int(p.name): p.read_text() for p in (inputs.parent / "workers").glob("*")}


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def start_noted(job, hurried, sign) -> Callable[[ChunkWork], ChunkDone]:
    """A toy worker that says where it is."""
    place = Path(job.inputs).parent / "workers"
    place.mkdir(exist_ok=True)
    tempfile.tempdir = str(place.parent)
    worker = ToyWorker(job, hurried, sign)
    (place / str(os.getpid())).write_text(get_runtime_context().get_node_id())
    return worker


class Driver:
    """`run_here` in a process of its own.

    Args:
        address: of the cluster.
        inputs: the catalog; outputs go beside it.
        patience: seconds without any host.
    """

    def __init__(self, address: str, inputs: Path, patience: float = 300):
        script = inputs.parent / "driver.py"
        if not script.exists():  # a driver that is starting would find it empty
            script.write_text(MAIN)
        self._log = inputs.parent / "driver.log"
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, script, address, inputs, inputs.parent / "out", str(patience)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def end(self) -> dict[str, Any]:
        """What it has said, when it has ended."""
        said, _ = self.process.communicate(timeout=UNTIL_HUNG)
        assert said, self.log
        return json.loads(said)

    @property
    def log(self) -> str:
        return self._log.read_text()


MAIN = """
import json, sys
import ray_hosts
from prolora_jax.catalog.fleet import holding, local_run
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.local_run import RunShare
from prolora_jax.errors import ProloraError

if __name__ == "__main__":
    local_run.start_worker = ray_hosts.start_noted
    holding.SLOW = 2.0
    address, inputs, out, patience = sys.argv[1:]
    job = FleetJob(inputs, out, "source", "target")
    share = RunShare(1, ray=address, patience=float(patience))
    try:
        told = vars(local_run.run_here(job, share))
    except ProloraError as error:
        told = {"error": str(error), "code": str(error.code), "exit": error.exit_code}
    print(json.dumps(told), flush=True)
"""

HOG = """
import sys, time
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

class Hog:
    def sit(self): return True

ray.init(address=sys.argv[1], log_to_driver=False)
hogs = [
    ray.remote(num_cpus=1)(Hog).options(scheduling_strategy=On(node, soft=False)).remote()
    for node in sys.argv[2:]
]
ray.get([hog.sit.remote() for hog in hogs])
print("sits", flush=True)
time.sleep(3600)
"""


class Hogs:
    """Others, who have the cores of some hosts."""

    def __init__(self, address: str, nodes: list[str]):
        words = [sys.executable, "-c", HOG, address, *nodes]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "sits\n"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
