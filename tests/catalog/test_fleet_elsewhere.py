"""What a worker on another host must see before it starts; Ray missing; devices of many hosts."""

import sys
import threading
import time
from pathlib import Path

import jax
import pytest
from fleet_workers import ToyWorker, start_toy

from prolora_jax.catalog.fleet.elsewhere import MARK, Elsewhere, anywhere, start_elsewhere
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.local_run import RunShare, run_here
from prolora_jax.errors import ProloraError, Refusal, UsageError
from prolora_jax.io.places.local import LocalPlace
from prolora_jax.migration.own_devices import require_own_devices


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """Of a job that was given by paths below the driver's own folder."""
    for name in ("in", "base", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "a.safetensors").write_bytes(b"a")
    LocalPlace(tmp_path / "out").create(MARK, b"letters", {})
    monkeypatch.chdir(tmp_path)
    job = anywhere(FleetJob("in", "out", "base", "hub/model", store=Path("store")))
    monkeypatch.chdir("/")
    return Elsewhere(start_toy, job, "a.safetensors", b"letters")


def start(told: Elsewhere) -> object:
    return start_elsewhere(told, threading.Event(), lambda: None)


def test_paths_mean_the_same_from_another_folder(told: Elsewhere, tmp_path: Path):
    assert told.job.source == str(tmp_path / "base")
    assert told.job.target == "hub/model"
    assert told.job.store == tmp_path / "store"
    assert isinstance(start(told), ToyWorker)


@pytest.mark.parametrize("gone", ["in/a.safetensors", "base", f"out/{MARK}"])
def test_a_host_that_does_not_see_a_folder_says_which(told: Elsewhere, tmp_path: Path, gone: str):
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    missing = tmp_path / gone.split("/")[0]
    with pytest.raises(UsageError, match=f"^{missing}: found another folder, or none") as refused:
        start(told)
    assert refused.value.code is Refusal.MISSING_FILE


def test_a_folder_of_the_same_name_is_not_the_same(told: Elsewhere):
    with pytest.raises(UsageError, match="out: found another folder"):
        start(told._replace(mark=b"others"))


def test_without_ray(told: Elsewhere, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "prolora_jax.engines.ray_crew", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'prolora_jax\[fleet\]'") as refused:
        run_here(told.job, RunShare(ray="auto"))
    assert refused.value.code is Refusal.MISSING_LIBRARY


def test_devices_that_wait_for_other_hosts(told: Elsewhere, monkeypatch: pytest.MonkeyPatch):
    require_own_devices()
    monkeypatch.setattr(jax, "process_count", lambda: time.sleep(0.5))
    with pytest.raises(ProloraError, match=r"no answer in 0.1 s.*TPU_PROCESS_BOUNDS=1,1,1"):
        require_own_devices(0.1)
    monkeypatch.setattr(jax, "process_count", lambda: 64)
    monkeypatch.setenv("TPU_PROCESS_BOUNDS", "1,1,1")
    with pytest.raises(ProloraError, match="TPU: found 64 processes"):
        start(told)
