"""One mesh over three real processes, each with its own store: agreed, equal, never hanging."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sharded_bases import model_of_many_shapes

from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.method.basis import Basis, BasisRule
from prolora_jax.subspaces.compute import compute_subspaces
from prolora_jax.subspaces.store import MemoryStore

SCRIPT = Path(__file__).parents[1].joinpath("support", "three_processes.py")
PROCESSES = 3
RULE = BasisRule("rank", 24.0)
AT_MOST = 60.0
"""Seconds after which nobody may wait any more."""


def together(model: BaseModel, stores: Path, trouble: str = "") -> list[dict[str, Any] | None]:
    """What each process says; None: it ended without a word."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "NPROC": "8",  # with as many threads as cores some products wait for ever
        "JAX_PLATFORMS": "cpu",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(i), address, model.location, str(stores), trouble],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(PROCESSES)
    ]
    try:
        said = [process.communicate(timeout=10 * AT_MOST) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    if not trouble:
        assert [process.returncode for process in started] == [0] * PROCESSES, said
    lines = [[line for line in out.splitlines() if line.startswith("{")] for out, _ in said]
    return [json.loads(found[-1]) if found else None for found in lines]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return model_of_many_shapes(tmp_path_factory.mktemp("model"))


def projector(columns: np.ndarray, k: int) -> np.ndarray:
    return columns[:, :k].astype(np.float64) @ columns[:, :k].T


def assert_close(found: Basis | None, model: BaseModel, path: str) -> None:
    """Against LAPACK's SVD in float64, as far as the weight's spectrum tells subspaces apart."""
    assert found is not None
    matrix = model.matrix(path).astype(np.float64)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(found.s, s, atol=1e-5 * s[0], rtol=0)
    k = int(np.count_nonzero(s > 1e-3 * s[0])) if s[0] else 0
    np.testing.assert_allclose(projector(found.u, k), projector(u, k), atol=1e-5)
    np.testing.assert_allclose(projector(found.v, k), projector(vt.T, k), atol=1e-5)


def test_unlike_stores_end_alike(model: BaseModel, tmp_path: Path):
    paths = list(model.spec.modules)
    have: list[set[str]] = [set(), set(paths), set(paths[:3])]  # one has all, and takes part
    for number, own in enumerate(have):
        compute_subspaces(model, own, FolderStore(tmp_path / str(number)), RULE)
    said = together(model, tmp_path)
    stores = [FolderStore(tmp_path / str(number)) for number in range(PROCESSES)]
    fingerprints = model.fingerprints(paths)
    for number, told in enumerate(said):
        assert told is not None
        assert told["failed"] == []
        assert told["told"] == len(paths)  # all that any of them lacked
        given = {fingerprints[path] for path in paths} - {fingerprints[p] for p in have[number]}
        assert set(told["given"]) == given
        assert len(told["given"]) == len(given)
        for path in paths:
            assert_close(stores[number].get(fingerprints[path]), model, path)
    for path in set(paths) - have[2]:  # what two of them got is the same, bit for bit
        for a, b in zip(
            *(store.get(fingerprints[path]) or () for store in stores[::2]), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    # Each read what its devices hold: a sixth of every tall weight for each, of a stack its own.
    tall = next(path for path in paths if path.endswith("0.ff.net.0.proj"))
    rows = [{tuple(r) for p, r in told["read"] if p == tall} for told in said if told]
    assert rows == [{(32 * i, 32 * i + 16), (32 * i + 16, 32 * i + 32)} for i in range(3)]
    square = [path for path in paths if path.endswith("attn1.to_k")]
    readers = [
        sum(path in {p for p, _ in told["read"]} for told in said if told) for path in square
    ]
    assert readers == [1] * len(square)


def test_trouble_of_one_is_told_to_all(model: BaseModel, tmp_path: Path):
    begun = time.monotonic()
    said = [told["failed"] if told else [] for told in together(model, tmp_path, "full")]
    assert [len(texts) for texts in said] == [2] * PROCESSES
    assert time.monotonic() - begun < AT_MOST
    assert all("found another list of weights in another process" in text for text, _ in said)
    other = "process 1 of 3: has failed"
    assert [text[: len(other)] for _, text in said] == [other, "no space left", other]


def test_nobody_waits_for_who_was_killed(model: BaseModel, tmp_path: Path):
    begun = time.monotonic()
    assert together(model, tmp_path, "killed") == [None] * PROCESSES
    assert time.monotonic() - begun < AT_MOST


def test_one_process_is_as_before(model: BaseModel):
    store, paths = MemoryStore(), list(model.spec.modules)
    assert compute_subspaces(model, paths, store, RULE) == len(paths)
    assert_close(store.get(model.fingerprint(paths[0])), model, paths[0])
