"""What Ray says of a worker that is gone, and what is asked of a host; without a cluster."""

import pytest

pytest.importorskip("ray", reason="ray is not installed for this Python")
from ray.exceptions import (  # noqa: E402
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayError,
)

from prolora_jax.engines.ray_crew import (  # noqa: E402
    RayCluster,
    RayCrew,
    _missing,
    _wanted,
    what_ended,
)
from prolora_jax.engines.ray_worker import tpu_environment  # noqa: E402
from prolora_jax.errors import Refusal, UsageError  # noqa: E402


def died(message: str) -> ActorDiedError:
    """Words of 2.60."""
    error = ActorDiedError()
    error.error_msg = message
    return error


CRASH = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
NODE = "The actor died because its node has died. Node Id: ab948ce2ee31"
IMPORT = "failed to import\nModuleNotFoundError: No module named 'prolora_jax'\n"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (died(CRASH), "ended"),
        (died(NODE), "lost"),
        (died("Worker exit type: NODE_OUT_OF_MEMORY"), "lost"),
        (OutOfMemoryError("Task was killed due to the node running low on memory"), "lost"),
        (ActorUnavailableError("keepalive watchdog timeout", None), "lost"),
    ],
)
def test_what_a_host_does_is_told_from_what_a_worker_does(error: RayError, kind: str):
    assert what_ended(error)[0] == kind


def test_a_preempted_host_is_no_workers_fault():
    error = died(CRASH)
    error._preempted = True
    assert what_ended(error)[0] == "lost"


def test_a_host_without_the_package_is_told():
    assert _missing(died(IMPORT)) == "prolora_jax"
    assert _missing(died(CRASH)) is None


def test_what_is_taken_of_a_host():
    assert _wanted({"CPU": 0.0, "memory": 1e9}, 4) == (0, {"num_cpus": 1})
    assert _wanted({"memory": 1e9}, 4)[0] == 0
    assert _wanted({"CPU": 2.0}, 4) == (2, {"num_cpus": 1})
    assert _wanted({"CPU": 64.0, "GPU": 8.0}, 1) == (8, {"num_cpus": 1, "num_gpus": 1})
    chips = {"num_cpus": 1, "resources": {"TPU": 4.0}}
    assert _wanted({"CPU": 96.0, "TPU": 4.0}, 8) == (1, chips)


def test_all_chips_of_a_host_are_a_world_of_their_own():
    four = tpu_environment(4)
    assert four["TPU_HOST_BOUNDS"] == four["TPU_PROCESS_BOUNDS"] == "1,1,1"
    assert four["TPU_CHIPS_PER_HOST_BOUNDS"] == four["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,2,1"
    assert tpu_environment(8)["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,4,1"
    assert tpu_environment(0) == {}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "somewhere"])
def test_no_cluster_there(address: str):
    with pytest.raises(UsageError, match=f"--ray {address}: found no Ray cluster") as refused:
        RayCrew(lambda *_: lambda _: None, None, RayCluster(address), {})
    assert refused.value.code is Refusal.BAD_OPTION


def test_a_token_is_spoken_of_where_none_is_chosen(monkeypatch: pytest.MonkeyPatch):
    said = []
    for mode in (None, "token"):
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
        if mode:
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
        with pytest.raises(UsageError) as refused:
            RayCrew(lambda *_: lambda _: None, None, RayCluster("127.0.0.1:1"), {})
        said.append("RAY_AUTH_MODE=token" in str(refused.value))
    assert said == [True, False]
