"""Runs of a fleet on a Ray cluster: hosts, workers, drivers and the head are killed; what is lost
costs no input anything, what cannot be placed holds up nobody, and where no host is left it ends
with words. Hosts are raylets of this machine (`ray_hosts`), workers have no engine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import UNTIL_HUNG
from ray_hosts import Driver, Hogs, RayHosts, alive, notes, wait_until
from small_adapters import write
from toy_pair import make_files

from prolora_jax.catalog.fleet.receipts import read_receipts
from prolora_jax.io.places.local import LocalPlace


@pytest.fixture(scope="module")
def hosts() -> Iterator[RayHosts]:
    """Three hosts; tests go from what harms none of them to what does."""
    with pytest.MonkeyPatch.context() as patch:
        cluster = RayHosts(patch)
        try:
            cluster.add(3)
            yield cluster
        finally:
            cluster.close()


def catalog(folder: Path, *names: str) -> Path:
    place = folder / "catalog"
    place.mkdir(exist_ok=True)
    for name in names:
        (place / f"{name}.safetensors").write_bytes(f"this is {name}".encode())
    return place


def receipts_of(inputs: Path) -> dict[str, str]:
    known = read_receipts(LocalPlace(inputs.parent / "out"))
    return {name.removesuffix(".safetensors"): one.receipt.state for name, one in known.items()}


def outputs_of(inputs: Path) -> dict[str, bytes]:
    found = (inputs.parent / "out").glob("*.safetensors")
    return {path.stem: path.read_bytes() for path in found}


def assert_whole(inputs: Path, *without: str) -> None:
    expected = {p.stem: p.read_bytes()[::-1] for p in inputs.iterdir() if p.stem not in without}
    assert outputs_of(inputs) == expected
    assert {n for n, state in receipts_of(inputs).items() if state == "done"} == {*expected}


def test_outputs_are_those_of_one_machine(hosts: RayHosts, tmp_path: Path):
    """The command itself, with the engine, from another folder than workers are in."""
    made = make_files(tmp_path / "toys")
    shutil.move(made.source, tmp_path / "sdxl")
    shutil.move(made.target, tmp_path / "ssd-1b")
    (tmp_path / "loras").mkdir()
    for seed in range(3):
        write(tmp_path / "loras" / f"a{seed}.safetensors", seed, (4,))
    words = ("--source", "sdxl", "--target", "ssd-1b", "--store", "store", "--json", "-q")

    def said(*command: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "prolora_jax", *command, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=UNTIL_HUNG,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    said("migrate", "loras", "--out", "one")
    told = said("fleet", "run", "loras", "--out", "out", "--ray", hosts.address)
    assert told["run"]["found"] == {"done": 3}
    for seed in range(3):
        name = f"a{seed}.safetensors"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert (tmp_path / "store-compiled").is_dir()


def test_what_cannot_be_placed_holds_up_nobody(hosts: RayHosts, tmp_path: Path):
    """Others have two hosts: the third does it all. They have all: the run says so, and ends."""
    inputs = catalog(tmp_path, *(f"a{n}" for n in range(12)))
    ids = [node.node_id for node in hosts.nodes]
    hogs = Hogs(hosts.address, ids[:2])
    try:
        assert Driver(hosts.address, inputs).end()["found"] == {"done": 12}
        assert {*notes(inputs).values()} == {ids[2]}
        assert_whole(inputs)
        catalog(tmp_path, "b")
        more = Hogs(hosts.address, ids[2:])
        try:
            told = Driver(hosts.address, inputs, patience=4).end()
        finally:
            more.close()
    finally:
        hogs.close()
    assert (told["code"], told["exit"]) == ("worker-ended", 1)
    assert "no host has taken a worker for 4 s (3 were asked for)" in told["error"]


def test_hosts_and_workers_that_are_killed_cost_no_input(hosts: RayHosts, tmp_path: Path):
    """And a file that ends its worker costs itself alone; a host that comes late gets work; what a
    stopped worker has is done by another."""
    inputs = catalog(tmp_path, *(f"slow{n:02}" for n in range(60)), "segv", "stopped")
    driver = Driver(hosts.address, inputs)
    wait_until(lambda: len(receipts_of(inputs)) >= 6)
    lost = hosts.kill(0)
    hosts.add()
    wait_until(lambda: hosts.nodes[3].node_id in notes(inputs).values())
    at = [pid for pid, node in notes(inputs).items() if node != lost and alive(pid)]
    os.kill(at[0], signal.SIGKILL)
    told = driver.end()
    assert told["found"].get("quarantined") == 1, driver.log
    assert (told["left"], told["complete"]) == (0, True)
    assert_whole(inputs, "segv")
    known = read_receipts(LocalPlace(tmp_path / "out"))["segv.safetensors"].receipt
    assert "3 workers that had nothing else to do have ended over it" in str(known.record.message)
    assert "SIGSEGV" in str(known.record.message)
    wait_until(lambda: not [pid for pid in notes(inputs) if alive(pid)])


def test_a_killed_driver_and_head_leave_nothing_and_lose_nothing(hosts: RayHosts, tmp_path: Path):
    """The same command on another cluster finishes, and touches nothing that was there."""
    count = 60  # a quarter of a second each: on a busy machine, too, some are left at each kill
    inputs = catalog(tmp_path, *(f"slow{n:02}" for n in range(count)))
    driver = Driver(hosts.address, inputs)
    wait_until(lambda: len(receipts_of(inputs)) >= 2)
    driver.process.terminate()
    told = driver.end()
    assert (driver.process.returncode, told["stopped"]) == (0, True), driver.log
    assert told["left"] == count - len(receipts_of(inputs)) > 0
    driver = Driver(hosts.address, inputs)
    wait_until(lambda: len(receipts_of(inputs)) >= count + 2 - told["left"])
    hosts.kill_head()
    driver.process.kill()
    driver.process.communicate()
    wait_until(lambda: not [pid for pid in notes(inputs) if alive(pid)])
    hosts.close()
    stood = {path: path.stat().st_ino for path in (tmp_path / "out").glob("*.safetensors")}
    assert count + 2 - told["left"] <= len(stood) < count
    with pytest.MonkeyPatch.context() as patch:
        cluster = RayHosts(patch)
        try:
            a_cluster_of_other_hosts(cluster, inputs, patch)
            assert stood.items() <= {p: p.stat().st_ino for p in stood}.items()
            the_last_host_dies(cluster, inputs)
        finally:
            cluster.close()


def a_cluster_of_other_hosts(cluster: RayHosts, inputs: Path, patch: pytest.MonkeyPatch) -> None:
    """A host with another version of the package is named; with one that fits it is left out."""
    other = inputs.parent / "other"
    (other / "prolora_jax-9.9.dist-info").mkdir(parents=True)
    text = "Metadata-Version: 2.1\nName: prolora_jax\nVersion: 9.9\n"
    (other / "prolora_jax-9.9.dist-info" / "METADATA").write_text(text)
    path = os.environ["PYTHONPATH"]
    patch.setenv("PYTHONPATH", f"{other}{os.pathsep}{path}")
    cluster.add()
    patch.setenv("PYTHONPATH", path)
    told = Driver(cluster.address, inputs).end()
    assert (told["code"], told["exit"]) == ("missing-library", 2)
    assert "with prolora_jax 9.9; expected Python" in told["error"]
    cluster.add()
    hogs = Hogs(cluster.address, [cluster.nodes[0].node_id])
    try:
        told = Driver(cluster.address, inputs).end()
    finally:
        hogs.close()
    assert (told["left"], told["complete"]) == (0, True)
    assert_whole(inputs)


def the_last_host_dies(cluster: RayHosts, inputs: Path) -> None:
    catalog(inputs.parent, *(f"slow-more{n}" for n in range(40)))
    cluster.kill(0)
    driver = Driver(cluster.address, inputs, patience=6)
    wait_until(lambda: len(receipts_of(inputs)) >= 42)
    cluster.kill(1)
    started = time.monotonic()
    told = driver.end()
    assert "no host has taken a worker for 6 s (0 were asked for)" in told["error"]
    assert told["exit"] == 1
    assert time.monotonic() - started < UNTIL_HUNG / 4
