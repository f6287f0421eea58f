"""Bases on devices: against LAPACK and the host, over 8 virtual devices, interrupted, by default.

The 8 devices are in a process of their own: see test_sharding.py.
"""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from eight_devices import found_by
from jax.sharding import Mesh
from sharded_bases import model_of_many_shapes, spectra

from prolora_jax.errors import BaseModelError
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.containers.tensors import TensorFile, write_tensors
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.method.basis import BasisRule
from prolora_jax.subspaces import compute as bases
from prolora_jax.subspaces import on_devices as basis_batches
from prolora_jax.subspaces.compute import compute_subspaces
from prolora_jax.subspaces.store import MemoryStore

SCRIPT = Path(__file__).parents[1].joinpath("support", "sharded_bases.py")

# Vectors are float64, rounded to float32 (6e-8): what is left is that rounding, and in the squared
# singular values a few eps of s_1^2.
STORED = {
    "left": 2e-7,
    "right": 2e-7,
    "long side orthonormal": 2e-7,
    "short side orthonormal": 2e-7,
    "squared values": 2e-14,
    "beyond the rows": 0.0,
}
# In float32 a span is off by about eps * s_1^2 / (s_k^2 - s_{k+1}^2), which is 2e-5 here; the long
# side is orthonormal to what `safe_ratio` says.
SINGLE = {
    **STORED,
    "left": 4e-5,
    "right": 4e-5,
    "long side orthonormal": 1.3e-4,
    "short side orthonormal": 5e-6,
    "squared values": 5e-6,
}


def one_device() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]), ("devices",))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return model_of_many_shapes(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found_by(SCRIPT, str(tmp_path_factory.mktemp("sharded")))


def too_large(errors: dict[str, float], limits: dict[str, float]) -> dict[str, float]:
    return {name: error for name, error in errors.items() if not error <= limits[name]}


@pytest.mark.parametrize("name", spectra())
def test_stacks_and_rows_are_as_good_as_lapack(found: dict[str, Any], name: str):
    for way in ("float64", "rows"):
        errors = found["errors"][f"{way} {name}"]
        assert set(errors) == set(STORED)
        assert too_large(errors, STORED) == {}


def test_float32_is_as_good_as_it_says(found: dict[str, Any]):
    for name in ("decaying", "flat", "deficient"):
        errors = found["errors"][f"float32 {name}"]
        assert too_large(errors, SINGLE) == {}
        assert errors["left"] > STORED["left"]  # it is float32 that was measured
    assert [name for name in found["errors"] if name.startswith("unsafe")] == [
        "unsafe float32 steep"
    ]


def test_eight_devices_give_what_one_gives(found: dict[str, Any]):
    assert set(found["errors"]["one device or eight"]) == {"left", "right"}
    for name in ("one device or eight", "zero"):
        assert too_large(found["errors"][name], STORED) == {}


def test_a_very_large_weight_is_never_gathered(found: dict[str, Any]):
    assert found["program"] == {
        "rows stay where they are": True,
        "sums": True,
        "gathers": False,
        "control gathers": True,
    }


def test_stores_are_those_of_the_host(found: dict[str, Any]):
    for rule in ("energy", "rank", "numerical"):
        assert too_large(found["errors"][f"store {rule}"], STORED) == {}
    degenerate = [
        f"unet.down_blocks.0.attentions.0.transformer_blocks.{i}.attn1.to_q" for i in (0, 1)
    ]
    assert found["by host"] == {"energy": [], "rank": degenerate, "numerical": []}


def test_stacks_are_of_equal_size_within_the_budget(
    model: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    todo: bases.Todo = {
        model.fingerprint(p): (p, BasisRule("rank", 4.0)) for p in model.spec.modules
    }
    monkeypatch.setattr(basis_batches, "STACK_BYTES", 4 * 24 * 24 * 5)
    monkeypatch.setattr(basis_batches, "ROWS_BYTES", 4 * 24 * 96 - 1)
    expected = {
        1: {(24, 24): [(5, 5), (5, 5), (5, 4)], (56, 24): [(2, 2), (2, 2)]},
        8: {(24, 24): [(16, 14)], (56, 24): [(8, 4)]},
    }
    for devices, sizes in expected.items():
        batches = basis_batches.plan_batches(model, todo, devices)
        seen: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for batch in batches:
            seen.setdefault(batch.shape, []).append((batch.size, len(batch.items)))
        # conv_in, and twice a weight above the limit: each alone, by its rows
        assert seen == {**sizes, (36, 24): [(devices, 1)], (96, 24): [(0, 1), (0, 1)]}
        assert {item.fingerprint for batch in batches for item in batch.items} == set(todo)


def test_interrupted_run_goes_on_where_it_was(
    model: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(basis_batches, "STACK_BYTES", 4 * 24 * 24 * 2)
    store, paths = FolderStore(tmp_path / "store"), list(model.spec.modules)

    def interrupt(_stage: str, done: int, _total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_subspaces(model, paths, store, progress=interrupt, mesh=one_device())
    assert [t.name for t in threading.enumerate() if t.name == "prefetch"] == []
    times = {file: file.stat().st_mtime_ns for file in store.folder.glob("*.safetensors")}
    assert len(times) == 5
    seen = []
    done = compute_subspaces(
        model, paths, store, progress=lambda *now: seen.append(now), mesh=one_device()
    )
    assert done == len(seen) == len(paths) - 5
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert len(store.entries()) == len(paths)
    assert compute_subspaces(model, paths, store, mesh=one_device()) == 0


def test_accelerators_are_used_when_there_is_enough_to_do(
    model: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    assert basis_batches.accelerators() is None  # these tests run on the CPU
    used = []

    def there_is_one() -> Mesh:
        used.append(1)
        return one_device()

    def forbidden(*_: object) -> None:
        raise AssertionError("computed on the host")

    monkeypatch.setattr(basis_batches, "accelerators", there_is_one)
    paths = list(model.spec.modules)
    assert compute_subspaces(model, paths, MemoryStore()) == len(paths)
    assert used == []
    monkeypatch.setattr(bases, "POOL_WORTH", 0.0)
    monkeypatch.setattr("prolora_jax.subspaces.on_host.compute_one", forbidden)
    store = MemoryStore()
    assert compute_subspaces(model, paths, store, workers=2) == len(paths)
    assert compute_subspaces(model, paths, store, workers=2) == 0
    assert used == [1]


def test_bad_weight_is_named(model: BaseModel, tmp_path: Path):
    file = TensorFile(Path(model.location), error=BaseModelError)
    tensors = {key: np.array(file.tensor(key)) for key in file.keys}
    bad = next(key for key in tensors if key.endswith("attn2.to_k.weight"))
    tensors[bad][0, 0] = np.inf
    write_tensors(tmp_path / "bad.safetensors", tensors)
    broken = load_base_model(tmp_path / "bad.safetensors")
    with pytest.raises(BaseModelError, match=r"attn2.to_k: found NaN or infinite") as caught:
        compute_subspaces(broken, broken.spec.modules, MemoryStore(), mesh=one_device())
    assert caught.value.code == "non-finite"


def test_a_stack_that_does_not_divide_is_refused(found: dict[str, Any]):
    assert found["refused"] == "3 weights over 8 devices: fill up with zeros"


def test_computing_on_the_host_loads_no_jax(model: BaseModel):
    code = (
        "import sys\n"
        "from prolora_jax.subspaces.compute import compute_subspaces\n"
        "from prolora_jax.subspaces.store import MemoryStore\n"
        "from prolora_jax.io.base_models.checkpoint import load_base_model\n"
        f"model = load_base_model({model.location!r})\n"
        "compute_subspaces(model, model.spec.modules, MemoryStore())\n"
        "import prolora_jax.subspaces.on_host\n"
        "print([m for m in ('jax', 'jaxlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
