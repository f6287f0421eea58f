"""A real Slurm for tests: one controller and three nodes on this machine, ended by their ids.

No systemd and nothing of the machine's own configuration: munged, slurmctld and slurmd run over a
folder, and whatever belongs to them has that folder in its environment.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import pytest
from patience import UNTIL_HUNG
from seaweed import free_ports

NODES = ("n1", "n2", "n3")
_NODE = "MADE_NODE"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo", "scancel", "scontrol")
_CONF = """
ClusterName=made
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=1
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool/%n
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A cluster.

    Args:
        folder: for its files; must be there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        for name in ("state", *(f"spool/{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)
        text = _CONF.format(host=os.uname().nodename, folder=folder, ports=free_ports(4))
        (folder / "slurm.conf").write_text(text)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)

    def start(self) -> None:
        """Start all of it, and wait until every node is idle."""
        paths = ("key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid")
        files = (f"--{name}={self.folder / file}" for name, file in (p.split("=") for p in paths))
        log = f"--log-file={self.folder / 'munge.log'}"
        seed = f"--seed-file={self.folder / 'munge.seed'}"
        self._daemon("munged", "--foreground", "--force", *files, log, seed)
        self._daemon("slurmctld", "-D", "-i")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node, node=node)
        self.until(self._all_idle)

    def _all_idle(self) -> bool:
        asked = [_found("sinfo"), "-h", "-t", "idle", "-o", "%D"]
        told = subprocess.run(asked, env=self.env, capture_output=True, text=True, timeout=60)
        return told.stdout.strip() == str(len(NODES))

    def _daemon(self, program: str, *words: str, node: str = "") -> None:
        with (self.folder / f"{program}{node}.log").open("wb") as log:
            started = subprocess.Popen(
                [_found(program), *words],
                env={**self.env, _NODE: node},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        self._daemons.append(started)

    def say(self, *words: str, env: Mapping[str, str] = MappingProxyType({})) -> str:
        """What a command of Slurm prints.

        Args:
            words: of the command.
            env: more for its environment.
        """
        asked = [_found(words[0]), *words[1:]]
        told = subprocess.run(
            asked,
            env={**self.env, **env},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=UNTIL_HUNG,
        )
        assert told.returncode == 0, told.stderr
        return told.stdout.strip()

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so."""
        begun = time.monotonic()
        while not true():
            if time.monotonic() - begun > UNTIL_HUNG:
                logs = (*self.folder.glob("*.log"), *self.folder.glob("*.out"))
                raise TimeoutError("\n".join(f"{p}:\n{p.read_text()[-1500:]}" for p in logs))
            time.sleep(0.2)

    def states(self, job: str) -> set[str]:
        """States of the tasks of a job."""
        words = self.say("scontrol", "show", "job", job).split()
        return {word.partition("=")[2] for word in words if word.startswith("JobState=")}

    def kill(self, node: str | None = None) -> None:
        """End a node, or all, as a power cut would: daemons, and what they have started."""
        asked = {f"{name}={node}".encode() for name in (_NODE, "SLURMD_NODENAME")}
        while found := [pid for pid, env in self._own() if node is None or asked & env]:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for daemon in self._daemons if node is None else ():
            daemon.wait()

    def _own(self) -> Iterator[tuple[int, set[bytes]]]:
        """Processes of this cluster, and their environments."""
        mine = f"SLURM_CONF={self.env['SLURM_CONF']}".encode()
        for place in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                env = set(place.read_bytes().split(b"\0"))
                if mine in env:
                    yield int(place.parts[2]), env


def _found(program: str) -> str:
    return str(shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"))


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """A cluster while the block runs; the test is skipped where it cannot be had."""
    missing = [name for name in _PROGRAMS if _found(name) == "None"]
    if missing:
        pytest.skip(
            f"Slurm is not installed ({', '.join(missing)}; Debian has it as slurmctld slurmd "
            "slurm-client munge)"
        )
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started by root alone")
    cluster = Slurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()
