"""Processes of `soak_fleet.py`: drivers of runs and their workers, and hosts of a Ray cluster."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from seaweed import KEY, SECRET

ROOT = Path(__file__).resolve().parent.parent
MARK = "PROLORA_SOAK_FLEET"
"""In the environment of every driver, and so of all that it starts."""


class Failed(Exception):
    """Something is not as it must be."""


def environment(folder: Path, endpoint: str | None = None) -> dict[str, str]:
    """Of the commands: programs are compiled once, temporary files are below `folder`.

    Args:
        folder: of the soak.
        endpoint: what `s3://` means.
    """
    (folder / "temporary").mkdir(exist_ok=True)
    told = {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "TMPDIR": str(folder / "temporary"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        **{f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")},
    }
    return told if endpoint is None else told | {"AWS_ENDPOINT_URL": endpoint}


class Driver:
    """`prolora fleet run` in a process of its own; what it says is kept.

    Args:
        words: of the command, behind `prolora`.
        told: environment.
        log: file that gets its messages.
    """

    def __init__(self, words: list[str], told: dict[str, str], log: Path):
        self._log = log
        with log.open("ab") as messages:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prolora_jax", *words],
                env=os.environ | told | {MARK: str(log.parent)},
                stdout=subprocess.PIPE,
                stderr=messages,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """Whether it is no more."""
        return self.process.poll() is not None

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.communicate()

    def result(self, seconds: float | None = None) -> dict[str, Any]:
        """What it has come to, with its exit code; `run` is missing where it was an error.

        Args:
            seconds: that it may take.

        Raises:
            Failed: it takes longer.
        """
        try:
            said, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"has not ended after {seconds:g} s: {self.messages()}") from None
        try:
            told = json.loads(said)
        except ValueError:
            told = {}
        return told | {"exit": self.process.returncode}

    def workers(self) -> list[int]:
        """Processes of its workers."""
        return [pid for pid in children(self.process.pid) if b"spawn_main" in command(pid)]

    def messages(self) -> str:
        """The last that it has said."""
        return self._log.read_text(errors="replace")[-2000:]


def children(pid: int) -> list[int]:
    """Processes that a process has started, and not waited for."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def command(pid: int) -> bytes:
    """What a process was started as; nothing when it is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def marked(folder: Path) -> list[int]:
    """Processes that drivers of this soak have started, themselves among them."""
    wanted, found = f"{MARK}={folder}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
        except OSError:
            continue
    return found


class Engine(Protocol):
    """What runs the workers of a driver, and what of it can be killed.

    Attributes:
        name: of it.
    """

    name: str

    def words(self) -> list[str]:
        """Options of `prolora fleet run`."""
        ...

    def strike(self, driver: Driver, chance: random.Random) -> str | None:
        """Kill something that is no driver and no store; returns what, or None."""
        ...

    def left(self) -> list[int]:
        """Workers that are there though no driver is."""
        ...

    def close(self) -> None:
        """End all that was started."""
        ...


class LocalEngine:
    """Worker processes of a driver.

    Args:
        workers: of each driver.
    """

    name = "local"

    def __init__(self, workers: int):
        self._workers = workers

    def words(self) -> list[str]:
        """See `Engine`."""
        return ["--local", str(self._workers)]

    def strike(self, driver: Driver, chance: random.Random) -> str | None:
        """Kill a worker."""
        pids = driver.workers()
        if not pids:
            return None
        os.kill(chance.choice(pids), signal.SIGKILL)
        return "worker"

    def left(self) -> list[int]:
        """None but those that are marked."""
        return []

    def close(self) -> None:
        """Workers end with their drivers."""


SMALL = {"object_store_memory": 80 * 2**20}
RAY = {
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else 15: on a machine with other work they starve
    # The dead are noticed in seconds: of hosts by the head, of the head by hosts.
    "RAY_health_check_period_ms": "1000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
SHARES = {"actor": 14, "raylet": 4, "head": 1}
"""How often each is killed; a head takes everything with it."""


class RayEngine:
    """A Ray cluster on this machine: a head without cores, and hosts of one core each.

    Args:
        hosts: how many.
        told: environment of all its processes.
    """

    name = "ray"

    def __init__(self, hosts: int, told: dict[str, str]):
        os.environ.update(told | RAY)
        self._hosts, self._cluster = hosts, self._start(hosts)

    @staticmethod
    def _start(hosts: int) -> Any:
        from ray.cluster_utils import Cluster

        usual = signal.getsignal(signal.SIGTERM)
        head = {"num_cpus": 0, "include_dashboard": False, **SMALL}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        signal.signal(signal.SIGTERM, usual)  # Ray has put its own there
        for last in [False] * (hosts - 1) + [True]:
            cluster.add_node(wait=last, num_cpus=1, **SMALL)
        return cluster

    def words(self) -> list[str]:
        """See `Engine`."""
        return ["--ray", str(self._cluster.address)]

    def strike(self, driver: Driver, chance: random.Random) -> str | None:
        """Kill an actor; or a host, that another takes the place of; or the head, and all anew."""
        kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "actor":
            actors = self.left()
            if not actors:
                return None
            os.kill(chance.choice(actors), signal.SIGKILL)
        elif kind == "raylet":
            node = chance.choice(list(self._cluster.worker_nodes))
            raylets = [process.process.pid for process in node.all_processes["raylet"]]
            agents = [pid for one in raylets for pid in children(one) if _is_agent(pid)]
            for pid in raylets:
                os.kill(pid, signal.SIGKILL)
            time.sleep(chance.uniform(0, 3))
            _end(agents)
            self._cluster.remove_node(node, allow_graceful=False)
            self._cluster.add_node(wait=False, num_cpus=1, **SMALL)
        else:
            for processes in self._cluster.head_node.all_processes.values():
                for process in processes:
                    process.process.kill()
            time.sleep(chance.uniform(0, 3))
            driver.kill()  # it has lost its cluster: the same command, on another one
            self.close()
            self._cluster = self._start(self._hosts)
        return kind

    def left(self) -> list[int]:
        """Actors."""
        nodes = list(self._cluster.worker_nodes)
        raylets = [one.process.pid for n in nodes for one in n.all_processes.get("raylet", ())]
        mine = [pid for raylet in raylets for pid in children(raylet)]
        return [pid for pid in mine if command(pid).startswith(b"ray::RayWorker")]

    def close(self) -> None:
        """End the cluster, and by their ids what names its session."""
        session = str(self._cluster.head_node.get_session_dir_path()).encode()
        pids = [int(place.name) for place in Path("/proc").glob("[0-9]*")]
        mine = [pid for pid in pids if pid != os.getpid() and session in command(pid)]
        mine += [child for pid in mine for child in children(pid)]
        self._cluster.shutdown()
        _end(mine)


def _is_agent(pid: int) -> bool:
    return command(pid).startswith((b"ray::DashboardAgent", b"ray::RuntimeEnvAgent"))


def _end(pids: list[int]) -> None:
    """End what is still there: Ray's agents may outlive the raylet that they belong to."""
    for pid in pids:
        if b"ray" in command(pid):
            os.kill(pid, signal.SIGKILL)
