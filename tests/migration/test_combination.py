"""Several adapters as one: the sum of dense updates, before and after moving."""

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from small_adapters import SPEC, write
from toy_pair import ToyFiles, make_files

from prolora_jax.adapters.adapter import Adapter, Companion, LoraModule, delta
from prolora_jax.adapters.combination import combine
from prolora_jax.cli.main import run
from prolora_jax.errors import AdapterRefused, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.merged import widest
from prolora_jax.plans.options import MigrationOptions


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Of other ranks, other alphas over rank, and of layers that only one of them has."""
    first = write(tmp_path / "a.safetensors", 1, (4, 12))
    return first, write(tmp_path / "b.safetensors", 2, (8,), ("to_q", "to_k"))


def dense(adapter: Adapter) -> dict[str, np.ndarray]:
    return {module.path: delta(adapter, module.path) for module in adapter.modules}


def summed(parts: list[tuple[float, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for weight, updates in parts:
        for path, update in updates.items():
            found[path] = found.get(path, 0) + weight * update
    return found


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for path, update in expected.items():
        error = float(np.linalg.norm(found[path] - update) / np.linalg.norm(update))
        assert error < tolerance, path


def test_is_the_weighted_sum(two: tuple[Path, Path]):
    a, b = (load_adapter(path, SPEC) for path in two)
    close(dense(combine([a, b], [0.8, -0.5])), summed([(0.8, dense(a)), (-0.5, dense(b))]), 1e-6)
    close(dense(combine([a, b])), summed([(1, dense(a)), (1, dense(b))]), 1e-6)


def test_vectors_beside_the_pairs_are_added_up_as_the_pairs_are(two: tuple[Path, Path]):
    a, b = (load_adapter(path, SPEC) for path in two)
    layer, other = a.modules[0].path, a.modules[1].path
    ones, twos = np.ones(4, np.float16), np.full(4, 2, np.float32)
    bias = Companion("a.diff_b", layer, "bias", ones)
    nothing = Companion("x", "x", "none", np.zeros(3))
    a = replace(a, companions=(bias, nothing))
    alone = Companion("c.diff_b", other, "bias", ones)
    b = replace(b, companions=(replace(bias, key="b.diff_b", array=twos), alone, nothing))
    found = {c.key: c for c in combine([a, b], [0.5, 3]).companions}
    assert found.keys() == {"a.diff_b", "c.diff_b", "x"}
    assert found["a.diff_b"].path == layer
    np.testing.assert_array_equal(found["a.diff_b"].array, [6.5] * 4)
    np.testing.assert_array_equal(found["c.diff_b"].array, [3.0] * 4)
    short = replace(b, companions=(replace(bias, array=twos[:3]),))
    with pytest.raises(AdapterRefused, match="a.diff_b: found 3 numbers, and 4 in another of the"):
        combine([a, short])


def test_two_axes_and_four_are_one_layer():
    rng = np.random.default_rng(0)
    flat = LoraModule("unet.x.proj_in", rng.normal(size=(2, 6)), rng.normal(size=(5, 2)), 1.0)
    conv = replace(flat, down=rng.normal(size=(3, 6, 1, 1)), up=rng.normal(size=(5, 3, 1, 1)))
    adapters = [Adapter((module,), "diffusers") for module in (flat, conv)]
    both = delta(combine(adapters), flat.path)
    expected = delta(adapters[0], flat.path)[..., None, None] + delta(adapters[1], flat.path)
    np.testing.assert_allclose(both, expected, rtol=1e-12)


def test_the_dtype_of_the_output_holds_all_inputs(two: tuple[Path, Path]):
    a, b = (load_adapter(path, SPEC) for path in two)
    other = [replace(m, up=m.up.astype(ml_dtypes.bfloat16)) for m in b.modules]
    assert widest(MigrationOptions(), [a, b]).dtype == "float16"
    assert widest(MigrationOptions(), [a, replace(b, modules=tuple(other))]).dtype == "float32"
    assert widest(MigrationOptions(dtype="bfloat16"), [a, b]).dtype == "bfloat16"


def test_what_cannot_be_added_is_refused(two: tuple[Path, Path]):
    a, b = (load_adapter(path, SPEC) for path in two)
    with pytest.raises(UsageError, match="3 weights for 2 adapters"):
        combine([a, b], [1, 2, 3])
    with pytest.raises(UsageError, match="finite"):
        combine([a, b], [1, float("nan")])
    one, other = (replace(x, extras={"emb": np.full(3, n)}) for n, x in enumerate((a, b)))
    assert combine([one, b]).extras.keys() == {"emb"}
    with pytest.raises(AdapterRefused, match="emb: found other numbers"):
        combine([one, other])


@pytest.mark.parametrize("method", ["copy", "prolora", "rotation"])
def test_moving_the_sum_is_summing_what_moved(
    toys: ToyFiles, two: tuple[Path, Path], tmp_path: Path, method: str
):
    """The arms are linear, so one migration of the sum and two migrations agree."""
    both, store = tmp_path / "both.safetensors", toys.adapter.parent / "store"
    pair = ["--source", str(toys.source), "--target", str(toys.target), "--method", method]
    pair += ["--store", str(store), "--dtype", "float32", "-q"]
    files = [str(path) for path in two]
    weights = ["--weight", "0.8", "--weight", "-0.5"]
    assert run(["migrate", *files, "--merge", *weights, "--out", str(both), *pair]) == 0
    target = load_base_model(toys.target).spec
    apart = []
    for weight, path in zip((0.8, -0.5), two, strict=True):
        out = tmp_path / f"{path.stem}.moved.safetensors"
        assert run(["migrate", str(path), "--out", str(out), *pair]) == 0
        apart.append((weight, dense(load_adapter(out, target))))
    close(dense(load_adapter(both, target)), summed(apart), 1e-5)


def test_verified_and_cut_by_rank(
    toys: ToyFiles, two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    both = tmp_path / "both.safetensors"
    pair = ["--source", str(toys.source), "--target", str(toys.target)]
    common = ["--store", str(toys.adapter.parent / "store"), "-q"]
    files = [str(path) for path in two]
    cut = ["--merge", "--rank", "6", "--out", str(both)]
    assert run(["migrate", *files, *cut, *pair, *common]) == 0
    adapter = load_adapter(both)
    assert max(adapter.ranks) == 6
    assert {str(m.up.dtype) for m in adapter.modules} == {"float16"}
    report = json.loads(Path(f"{both}.report.json").read_text())
    assert [(p["location"], p["weight"]) for p in report["parts"]] == [(f, 1.0) for f in files]
    assert run(["verify", str(both), *common]) == 0
    capsys.readouterr()
    assert run(["verify", str(both), "--source-lora", files[0], *common]) == 2
    assert "made of 2 adapters" in capsys.readouterr().err
    assert run(["migrate", files[0], "--weight", "2", "--out", "x", *pair, *common]) == 2
    assert "--weight is for --merge" in capsys.readouterr().err
    two[1].unlink()
    write(two[1], 5, (8,))  # another adapter in its place
    assert run(["verify", str(both), *common]) == 1
