"""`prolora diff`: norms, cosine and energy on factors, against dense updates."""

import json
from pathlib import Path

import numpy as np
import pytest
from toy_pair import make_files

from prolora_jax.adapters.adapter import Adapter, Companion, LoraModule, delta
from prolora_jax.adapters.comparison import compare
from prolora_jax.cli.main import run

Q, K, V = (f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_{x}" for x in "qkv")


def module(path: str, seed: int, rank: int, alpha: float | None = None, width: int = 7):
    rng = np.random.default_rng(seed)
    down = rng.normal(size=(rank, width)).astype(np.float32)
    return LoraModule(path, down, rng.normal(size=(5, rank)).astype(np.float32), alpha)


def test_factors_give_what_dense_updates_give():
    a = Adapter((module(Q, 0, 3, alpha=1.5), module(K, 1, 2)), "diffusers")
    b = Adapter((module(Q, 2, 4, alpha=-2.0), module(K, 3, 2), module(V, 4, 2)), "diffusers")
    found = compare(a, b)
    for path in (Q, K):
        x, y = delta(a, path), delta(b, path)
        row = found.modules[path]
        assert row.norm_a == pytest.approx(np.linalg.norm(x))
        assert row.norm_b == pytest.approx(np.linalg.norm(y))
        assert row.cosine == pytest.approx(
            np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12
        )
        assert row.energy == pytest.approx(np.sum(y**2) / np.sum(x**2))
        assert row.difference == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
    whole_a = np.concatenate([delta(a, path).ravel() for path in (Q, K)])
    whole_b = np.concatenate([delta(b, path).ravel() for path in (Q, K)])
    assert found.cosine == pytest.approx(
        whole_a @ whole_b / np.linalg.norm(whole_a) / np.linalg.norm(whole_b)
    )
    assert (found.only_a, found.only_b, found.other_shape) == ((), (V,), ())


def test_equal_updates_in_other_factors_do_not_differ():
    one = module(Q, 0, 3)
    gauge = np.random.default_rng(9).normal(size=(3, 3))
    down = (np.linalg.inv(gauge) @ one.down).astype(np.float64)
    other = LoraModule(Q, down, one.up.astype(np.float64) @ gauge)
    row = compare(Adapter((one,), "diffusers"), Adapter((other,), "diffusers")).modules[Q]
    assert row.cosine == pytest.approx(1.0, abs=1e-9)
    assert row.difference == pytest.approx(0.0, abs=1e-6)


def test_what_stands_beside_the_pairs_is_named_where_it_is_not_the_same():
    def beside(bias: float, *more: Companion) -> Adapter:
        known = Companion(f"{Q}.diff_b", Q, "bias", np.full(3, bias, np.float32))
        nothing = Companion(f"{K}.diff_b", K, "none", np.zeros(3, np.float32))
        return Adapter((module(Q, 0, 3),), "diffusers", companions=(known, nothing, *more))

    pictures = Companion("vision.fc1.lora_A", "vision.fc1", "layer", np.ones((2, 3), np.float32))
    assert compare(beside(1.0, pictures), beside(1.0, pictures)).beside == ()
    assert compare(beside(1.0), beside(2.0)).beside == (Q,)
    assert compare(beside(1.0, pictures), beside(1.0)).beside == ("vision.fc1",)
    saved = Companion(f"{K}.bias", K, "saved", np.ones(3, np.float32))
    weight = Companion(f"{K}.weight", K, "saved", np.ones((3, 2), np.float32))
    assert compare(beside(1.0, saved, weight), beside(1.0, saved, weight)).beside == ()
    assert compare(beside(1.0, saved, weight), beside(1.0, weight)).beside == (K,)
    tokens = [Companion(V, V, "rows", np.ones((1, 2), np.float32), rows) for rows in ((1,), (2,))]
    assert compare(beside(1.0, tokens[0]), beside(1.0, tokens[1])).beside == (V,)
    # What a migration wrote is for another base model's layer.
    assert compare(beside(1.0), beside(2.0), {Q: Q}).beside == ()


def test_zero_update_and_other_shape():
    zero = LoraModule(Q, np.zeros((2, 7), np.float32), np.ones((5, 2), np.float32))
    a = Adapter((zero, module(K, 1, 2)), "diffusers")
    b = Adapter((module(Q, 0, 2), module(K, 1, 2, width=9)), "diffusers")
    found = compare(a, b)
    assert (found.modules[Q].cosine, found.modules[Q].energy) == (None, None)
    assert found.other_shape == (K,)


def test_migrated_file_is_compared_with_the_modules_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = make_files(tmp_path)
    out = tmp_path / "out.safetensors"
    bases = ["--source", str(files.source), "--target", str(files.target)]
    assert run(["migrate", str(files.adapter), *bases, "--out", str(out), "--method", "copy"]) == 0
    capsys.readouterr()
    picture = tmp_path / "diff.png"
    command = ["diff", str(files.adapter), str(out), "--json", "--plot", str(picture)]
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["modules"]) == 168
    # Half precision: the copy has the scale folded into it.
    assert min(row["cosine"] for row in found["modules"].values()) > 1 - 1e-5
    assert len(found["only_a"]) == 152
    assert picture.read_bytes().startswith(b"\x89PNG")
    # By name alone the shifted blocks are other layers.
    assert run(["diff", str(files.adapter), str(out), "--base", str(files.source), "--json"]) == 0
    by_name = json.loads(capsys.readouterr().out)
    assert min(row["cosine"] for row in by_name["modules"].values()) < 0.5


def test_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = make_files(tmp_path)
    out = tmp_path / "out.safetensors"
    bases = ["--source", str(files.source), "--target", str(files.target)]
    arguments = ["migrate", str(files.adapter), *bases, "--out", str(out), "--method", "copy"]
    assert run([*arguments, "--format", "diffusers"]) == 0
    Path(f"{out}.report.json").unlink()
    assert run(["diff", str(files.adapter), str(out)]) == 2
    assert "have no module in common" in capsys.readouterr().err
    assert run(["diff", str(files.adapter), str(files.adapter), "--plot", "x.png"]) == 2
    assert "--plot needs --base for kohya files" in capsys.readouterr().err
