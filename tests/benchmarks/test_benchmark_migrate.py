"""The benchmark of migrations: what it compares is the same, and it runs. Speed is not tested."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference as ref
from rich.console import Console

from prolora_jax.benchmarks import migrate, timing
from prolora_jax.benchmarks.made_updates import Updates, made_module
from prolora_jax.benchmarks.recompression import compressed
from prolora_jax.benchmarks.targets import at_least, at_most
from prolora_jax.cli import benchmark_tables as tables
from prolora_jax.cli.main import run

SHAPES = ((24, 24), (40, 16), (16, 40))
EXACT = 1e-5  # method.md 6, law 8: of the update's norm


def made(shape: tuple[int, int], adapters: int = 2) -> Updates:
    return Updates(made_module(shape, min(shape) // 2), 4, adapters)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_contestants_compute_the_arm(shape):
    pytest.importorskip("torch")
    updates = made(shape)
    up, down = (factor[0].double().numpy() for factor in updates.factors)
    pair = ref.pair_of_bases(*updates.module.spans)
    wanted = ref.project("prolora", pair, up @ down)
    size = float(np.linalg.norm(up @ down))
    for name in ("ours", "paper", "thin", "wide"):
        assert np.linalg.norm(updates.dense(name) - wanted) <= EXACT * size
        missed = np.linalg.norm(updates.dense(f"{name} cut") - wanted)
        assert missed == pytest.approx(ref.tail(wanted, 4), abs=EXACT * size)
    assert max(migrate.differences(updates).values()) <= EXACT


def test_contestants_that_differ_are_not_reported(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    dense = Updates.dense
    monkeypatch.setattr(
        Updates, "dense", lambda self, name: dense(self, name) * (1.001 if name == "thin" else 1)
    )
    with pytest.raises(ArithmeticError, match="thin is 1.0e-03 off on 24 x 24; expected 0.0001"):
        migrate.differences(made((24, 24)))


def test_needed_operations_are_those_of_the_products():
    module = made_module((24, 24), 12)
    # Split form: a full basis, and each half on its own; widths are padded to 24 columns here.
    assert [side.form.kind for side in module.operators] == ["split", "split"]
    columns = sum(
        side.operator.analysis.shape[1] + sum(len(s) for s in side.operator.synthesis)
        for side in module.operators
    )
    assert module.flops(3) == 2 * 3 * 24 * columns


def test_recompression_alone_is_that_of_the_engine():
    updates = made((24, 24))
    left, right = (side.parts for side in updates.sides(wide=True)())
    up, down = compressed(left, right, 4)
    whole = sum(
        np.swapaxes(np.asarray(a[0], np.float64), 0, 1) @ np.asarray(b[0], np.float64)
        for a, b in zip(left, right, strict=True)
    )
    missed = np.linalg.norm(up[0].astype(np.float64) @ down[0] - whole)
    assert missed == pytest.approx(ref.tail(whole, 4), rel=1e-5)


def test_verdicts_can_fail():
    assert at_least("a", "gain", 2.0, 2.0)["met"]
    assert not at_least("a", "gain", 2.0, 1.99)["met"]
    assert not at_least("a", "gain", 2.0, float("nan"))["met"]
    stretched = at_least("a", "gain", 1.0, 1.2, stretch=1.3)
    assert stretched["met"]
    assert not stretched["stretch_met"]
    assert at_most("a", "error", 1e-6, 1e-6)["met"]
    assert not at_most("a", "error", 1e-6, 2e-6)["met"]
    assert not at_most("a", "error", 1e-6, float("nan"))["met"]


def test_the_set_is_that_of_the_model():
    sizes = migrate.full_sizes()
    assert sum(sizes.counts.values()) == 272
    assert sizes.counts[1280, 1280] == 156
    assert set(sizes.counts) <= {shape for shape, *_ in sizes.shapes}


def test_quick_benchmark_of_migrations_writes_every_sample(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch")
    file = tmp_path / "migrate.json"
    assert run(["benchmark", "migrate", "--quick", "-q", "--json", "--out", str(file)]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    found = json.loads(file.read_text())
    assert json.loads(printed.out) == found
    assert len(found["environment"]["cores_usable"]) == found["environment"]["torch_threads"] == 1
    results = found["results"]
    curves = [row for name in ("rank", "adapters", "shape") for row in results["curves"][name]]
    measured = [results["set"], *results["modules"], *curves]
    assert len(measured) == 1 + 2 + 2 + 2 + 2
    for each in measured:
        for seconds in each["seconds"].values():
            assert len(seconds["cpu_s"]) == timing.ROUNDS
            assert seconds["median_s"] == pytest.approx(np.median(seconds["cpu_s"]))
        figures = [*each["gains"].values(), *each["share_of_peak"].values(), each["flops"]]
        assert np.isfinite(figures).all()
        assert min(figures) > 0
    whole = results["set"]["seconds"]
    rounds = np.divide(whole["thin cut"]["cpu_s"], whole["ours cut"]["cpu_s"])
    assert results["set"]["gains"]["thin cut"] == pytest.approx(np.median(rounds))
    for name, most in results["set"]["gains_at_peak"].items():
        ours = "ours cut" if name.endswith("cut") else "ours"
        times = whole[name]["median_s"] / whole[ours]["median_s"]
        assert most * results["set"]["share_of_peak"][ours] == pytest.approx(times)
    assert max(max(row["differences"].values()) for row in results["modules"]) < EXACT
    for row in results["recompression"]["columns"].values():
        assert row["missed"]["ours"] == pytest.approx(row["missed"]["best"], rel=1e-3)
    assert results["curves"]["devices"]["found"] == "not measured"
    assert np.isfinite([row["found"] for row in found["targets"]]).all()
    tables.show_migrate(Console(), found)
    assert "targets are not judged" in capfd.readouterr().out
    missed = [row | {"met": False} for row in found["targets"]]
    tables.show_migrate(Console(width=200), found | {"quick": False, "targets": missed})
    assert "MISSED" in capfd.readouterr().out
