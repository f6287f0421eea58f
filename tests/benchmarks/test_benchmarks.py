"""Benchmarks: the protocol, the baselines, one quick run from end to end. Speed is not tested."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import reference as ref
import strategies as gen
from rich.console import Console

from prolora_jax.benchmarks import bases, peaks, timing
from prolora_jax.benchmarks.baselines import PaperLayer, Spans, ThinLayer, WideLayers
from prolora_jax.cli import benchmark_tables as tables
from prolora_jax.cli.main import run

EXACT = 1e-5  # method.md 6, law 8: of the update's norm, the same bases given to both


# --- protocol -----------------------------------------------------------------------------------


class FakeClock:
    """Time passes only when a contestant says so."""

    def __init__(self):
        self.now = 0.0
        self.order: list[str] = []

    def contestant(self, name: str, seconds: list[float]):
        left = [100.0, *seconds]  # the first run does not count

        def work():
            self.order.append(name)
            self.now += left.pop(0)

        return work

    def __call__(self) -> float:
        return self.now


def test_contestants_take_turns_and_the_first_run_does_not_count():
    clock = FakeClock()
    slow, fast = [4.0, 6.0, 8.0, 2.0, 10.0], [1.0, 2.0, 2.0, 2.0, 1.0]
    contestants = {"a": clock.contestant("a", slow), "b": clock.contestant("b", fast)}
    found = timing.interleaved(contestants, 5, clock, clock)
    assert clock.order == ["a", "b"] * 6
    assert found["a"].cpu == tuple(slow)
    assert found["b"].wall == tuple(fast)
    assert found["a"].median == 6.0
    assert timing.ratio(found["a"], found["b"]) == 4.0  # of 4, 3, 4, 1, 10: not 6 / 2
    assert found["a"].to_dict() == {
        "median_s": 6.0,
        "quartiles_s": [4.0, 8.0],
        "wall_median_s": 6.0,
        "cpu_s": slow,
        "wall_s": slow,
    }


def test_total_adds_parts_round_by_round():
    parts = {"a": timing.Samples((1.0, 2.0), (1.0, 1.0)), "b": timing.Samples((5.0, 1.0), (0, 0))}
    assert timing.total(parts, {"a": 2, "b": 1}).cpu == (7.0, 5.0)
    assert timing.total(parts, {"b": 3}).wall == (0.0, 0.0)


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="4 rounds: expected 5 or more"):
        timing.interleaved({"a": lambda: None}, 4)


def test_peaks_are_positive(tmp_path: Path):
    found = peaks.measure(tmp_path / "new", quick=True)
    disk = found["disk_bytes"]
    assert disk.pop("folder") == str(tmp_path / "new")
    assert set(found["matmul_flops"]) == {
        f"{library}_{dtype}" for library in ("numpy", "xla") for dtype in ("float32", "float64")
    }
    values = [*found["matmul_flops"].values(), *disk.values(), found["stream_copy_bytes"]]
    assert min(values) > 0
    assert not list((tmp_path / "new").iterdir())


# --- baselines against the dense reference ------------------------------------------------------

SHAPES = ((24, 24), (36, 14), (14, 36))
RANK = 4


def module_of(rng: np.random.Generator, shape: tuple[int, int], k: int):
    """Spans of two related weights, and an update."""
    source = gen.matrix_of(rng, *shape, "decaying")
    target = source + 0.02 * np.std(source) * rng.standard_normal(shape)
    (u_s, _, v_s), (u_t, _, v_t) = ref.svd(source), ref.svd(target)
    spans = Spans(*(a[:, :k].astype(np.float32) for a in (u_s, v_s, u_t, v_t)))
    up = rng.standard_normal((shape[0], RANK)).astype(np.float32)
    down = rng.standard_normal((RANK, shape[1])).astype(np.float32)
    pair = ref.pair_of_bases(spans.u_source, spans.v_source, spans.u_target, spans.v_target)
    return spans, up, down, ref.project("prolora", pair, up.astype(np.float64) @ down)


def assert_same(got, wanted, delta) -> None:
    assert np.linalg.norm(np.asarray(got, np.float64) - wanted) <= EXACT * np.linalg.norm(delta)


def assert_best(up, down, wanted, delta) -> None:
    """Factors of rank RANK that miss no more than the best ones do."""
    assert down.shape[0] == RANK
    missed = np.linalg.norm(up.double().numpy() @ down.double().numpy() - wanted)
    assert missed <= ref.tail(wanted, RANK) + EXACT * np.linalg.norm(delta)


@pytest.mark.parametrize("k", [1, 4, 7, 11])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_single_baselines_compute_the_arm(shape, k):
    torch = pytest.importorskip("torch")
    spans, up, down, wanted = module_of(np.random.default_rng(k), shape, k)
    delta = up @ down
    factors = torch.from_numpy(up), torch.from_numpy(down)
    paper, thin = PaperLayer(spans), ThinLayer(spans)
    assert_same(paper.project(*factors), wanted, delta)
    left, right = thin.project(*factors)
    assert left.shape[1] == 2 * RANK
    assert_same(left @ right, wanted, delta)
    assert_best(*paper.migrate(*factors), wanted, delta)
    assert_best(*thin.migrate(*factors), wanted, delta)


@pytest.mark.parametrize("k", [1, 4, 7, 11])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wide_baseline_computes_the_arm_for_every_module_and_adapter(shape, k):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(k)
    modules = [module_of(rng, shape, k)[0] for _ in range(2)]
    ups = rng.standard_normal((2, 3, shape[0], RANK)).astype(np.float32)
    downs = rng.standard_normal((2, 3, RANK, shape[1])).astype(np.float32)
    ups[1, 2, :, 1] = 0.0  # an adapter of a lower rank
    wide = WideLayers(modules)
    factors = torch.from_numpy(ups), torch.from_numpy(downs)
    (up_in, down_in), (up_out, down_out) = wide.project(*factors)
    lefts, rights = wide.migrate(*factors)
    for i, spans in enumerate(modules):
        pair = ref.pair_of_bases(spans.u_source, spans.v_source, spans.u_target, spans.v_target)
        for n in range(3):
            delta = ups[i, n].astype(np.float64) @ downs[i, n]
            wanted = ref.project("prolora", pair, delta)
            got = up_in[i, n] @ down_in[i, n] + up_out[i, n] @ down_out[i, n]
            assert_same(got, wanted, delta)
            assert_best(lefts[i, n], rights[i, n], wanted, delta)


def test_missing_pytorch_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "torch.py").write_text("raise ImportError")
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{before}" if before else str(tmp_path))
    assert run(["benchmark", "bases", "--quick"]) == 2
    message = capfd.readouterr().err
    assert message.startswith("error: The baselines of the benchmarks need PyTorch")
    assert message.count("\n") == 1


# --- from end to end ----------------------------------------------------------------------------


def test_quick_benchmark_of_bases_writes_every_sample(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch")
    file = tmp_path / "bases.json"
    assert run(["benchmark", "bases", "--quick", "-q", "--json", "--out", str(file)]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    found = json.loads(file.read_text())
    assert json.loads(printed.out) == found
    assert found["protocol"]["rounds"] == timing.ROUNDS
    machine = found["environment"]
    assert len(machine["cores_usable"]) == machine["torch_threads"] == 1
    assert {"jax", "numpy", "torch"} <= set(machine["libraries"])
    for kind in ("gaussian", "decaying"):
        result = found["results"][kind]
        measured = [*result["shapes"], *result["sets"].values()]
        assert len(measured) == 6
        for each in measured:
            for name in ("ours", "torch"):
                assert len(each[name]["cpu_s"]) == timing.ROUNDS
                assert each[name]["median_s"] == pytest.approx(np.median(each[name]["cpu_s"]))
            rounds = np.divide(each["torch"]["cpu_s"], each["ours"]["cpu_s"])
            assert each["gain"] == pytest.approx(np.median(rounds))
    errors = [row["found"] for row in found["targets"] if row["what"] == "projector error"]
    assert len(errors) == 3
    assert max(errors) < 1e-5  # of accuracy, not of speed: holds on any machine
    tables.show_bases(Console(), found)
    assert "targets are not judged" in capfd.readouterr().out
    tables.show_bases(Console(width=200), found | {"quick": False})
    assert "projector error" in capfd.readouterr().out


def test_benchmark_refuses_too_few_rounds(capsys: pytest.CaptureFixture[str]):
    assert run(["benchmark", "bases", "--rounds", "4"]) == 2
    assert "--rounds 4: expected 5 or more" in capsys.readouterr().err


def test_counts_of_modules_are_those_of_the_models():
    counts = bases.module_counts()
    sizes = {name: {k: sum(c.values()) for k, c in sides.items()} for name, sides in counts.items()}
    assert sizes["attention"] == {"ours": 560 + 272, "baseline": 560 + 272}
    assert sizes["with feed-forward"] == {"ours": 700 + 340, "baseline": 700 + 340}
    assert sizes["pair"] == {"ours": 2 * 272, "baseline": 560 + 272}


def test_projector_error_is_that_of_the_projectors():
    rng = np.random.default_rng(0)
    a, b = gen.orthonormal(rng, 12, 5), gen.orthonormal(rng, 12, 5)
    assert bases.projector_error(a, b) == pytest.approx(np.linalg.norm(a @ a.T - b @ b.T, 2))
    assert bases.projector_error(a, a) < 1e-15
