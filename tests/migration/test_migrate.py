"""The main job on files that other programs wrote, against the dense float64 reference.

diffusers builds the nets, peft makes the adapter, diffusers writes it; the command line migrates;
diffusers loads the result. The expected update comes from tests/support/reference.py
and torch's weights.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from builders import TINY_SSD, deltas_by_diffusers
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from pairs import TorchPair, make_pair

from prolora_jax.cli.main import run

FROM_WEIGHTS = 1e-4  # method.md 6, law 8 (ii): float32 output, bases computed from the weights
FUSED = 1e-6  # share of ||W|| by which a fused float32 weight may differ


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TorchPair:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def given(pair: TorchPair) -> dict[str, np.ndarray]:
    """The input's updates, by diffusers."""
    return deltas_by_diffusers(dict(pair.source_net.config), pair.adapter)


@pytest.fixture(scope="module")
def exact(pair: TorchPair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The default output's updates, by diffusers."""
    out = tmp_path_factory.mktemp("exact") / "out.safetensors"
    migrate(pair, out)
    return deltas_by_diffusers(TINY_SSD, out)


def migrate(pair: TorchPair, out: Path, *options: str) -> dict:
    """Run the command line, by `prolora` if no arm is named; returns the report."""
    if "--method" not in options:
        options = ("--method", "prolora", *options)
    command = ["migrate", str(pair.adapter), "--source", str(pair.source), "--target"]
    command += [str(pair.target), "--out", str(out), "--store", str(pair.source.parent / "store")]
    assert run([*command, "--quiet", *options]) == 0
    return json.loads(Path(f"{out}.report.json").read_text())


@pytest.mark.proves("diffusers", "migrate", "diffusers fuses, dense reference computes")
@pytest.mark.parametrize("method", reference.ARMS)
def test_each_arm_equals_the_reference(
    pair: TorchPair, given: dict[str, np.ndarray], tmp_path: Path, method: str
):
    report = migrate(pair, tmp_path / "out.safetensors", "--method", method)
    found = deltas_by_diffusers(TINY_SSD, tmp_path / "out.safetensors")
    rows = {row["path"]: row for row in report["modules"]}
    assert set(found) == set(rows)
    compared = 0
    for path, row in rows.items():
        source_path = row["source_path"]
        assert source_path == pair.source_path(path)
        if "clustered-cut" in row["flags"]:
            continue
        w_s = pair.weight(pair.source_net, source_path)
        w_t = pair.weight(pair.target_net, path)
        delta = given[source_path]
        expected = delta
        if row["action"] == "project":
            k_s, k_t = reference.pair_ranks(
                np.linalg.svd(w_s)[1], np.linalg.svd(w_t)[1], ("energy", 0.9)
            )
            assert (k_s, k_t) == (row["k_source"], row["k_target"])
            bases = reference.pair_of_weights(w_s, w_t, k_s, k_t)
            expected = reference.project(method, bases, delta)
            out, width = delta.shape
            for side, dim, spans in (
                ("left", out, (bases.u_s, bases.u_t)),
                ("right", width, (bases.v_s, bases.v_t)),
            ):
                phi = reference.phi(*spans)
                hat = reference.corrected(phi, reference.chance(k_s, k_t, dim))
                assert row[f"phi_{side}"] == pytest.approx(phi, abs=1e-5)
                assert row[f"phi_hat_{side}"] == (hat and pytest.approx(hat, abs=1e-4))
            compared += 1
        error = np.linalg.norm(found[path] - expected) / np.linalg.norm(delta)
        assert error <= FROM_WEIGHTS, path
        assert row["norm_in"] == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert row["norm_out"] == pytest.approx(np.linalg.norm(found[path]), rel=1e-5)
    if method != "copy":
        assert compared > 50


def test_gate_and_reasons(pair: TorchPair, given: dict[str, np.ndarray], tmp_path: Path):
    report = migrate(pair, tmp_path / "out.safetensors")
    skipped = {row["source_path"]: row["reason"] for row in report["skipped"]}
    moved = {row["source_path"] for row in report["modules"]}
    assert moved | set(skipped) == set(given)
    assert not moved & set(skipped)
    for path, reason in skipped.items():
        if path.startswith("unet.mid_block.attentions"):
            assert reason == "removed-in-target"
    below = [path for path, reason in skipped.items() if reason == "below-threshold"]
    assert below
    assert all(path.startswith("unet.up_blocks.1") for path in below)


def test_fused_weights_change_by_the_update(pair: TorchPair, tmp_path: Path):
    migrate(pair, tmp_path / "out.safetensors")
    expected = deltas_by_diffusers(TINY_SSD, tmp_path / "out.safetensors")
    net = pair.target_net
    before = {name: p.detach().double().clone() for name, p in net.named_parameters()}
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(
        str(tmp_path / "out.safetensors"), unet_config=net.config
    )[:2]
    StableDiffusionXLPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=net)
    net.fuse_lora()
    net.unload_lora()
    try:
        after = {name: p.detach().double() for name, p in net.named_parameters()}
        assert set(after) == set(before)
        for name, weight in before.items():
            change = (after[name] - weight).numpy()
            path = "unet." + name.removesuffix(".weight")
            delta = expected[path].reshape(change.shape) if path in expected else 0.0
            assert np.linalg.norm(change - delta) <= FUSED * np.linalg.norm(weight), name
    finally:
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.copy_(before[name])


@pytest.mark.parametrize("planted", [(0, 1), (1, 2)])
def test_planted_blocks_are_recovered(tmp_path: Path, planted: tuple[int, int]):
    pair = make_pair(tmp_path, planted=planted)
    report = migrate(pair, tmp_path / "out.safetensors", "--method", "copy")
    deep = [a for a in report["alignments"] if (a["source_blocks"], a["target_blocks"]) == (3, 2)]
    assert len(deep) == 4
    for alignment in deep:
        assert [tuple(p) for p in alignment["pairs"]] == list(zip(planted, (0, 1), strict=True))
        assert alignment["margin"] > 0.5


@pytest.mark.proves("kohya-ldm", "migrate", "diffusers fuses")
@pytest.mark.proves("kohya-diffusers", "migrate", "diffusers fuses")
@pytest.mark.proves("maxdiffusion", "migrate", "diffusers fuses")
@pytest.mark.parametrize("format", ["kohya", "kohya-diffusers", "diffusers", "maxdiffusion"])
def test_every_output_format_holds_the_same_update(
    pair: TorchPair, exact: dict[str, np.ndarray], tmp_path: Path, format: str
):
    migrate(pair, tmp_path / "other.safetensors", "--format", format)
    other = deltas_by_diffusers(TINY_SSD, tmp_path / "other.safetensors")
    assert set(exact) == set(other)
    for path, delta in exact.items():
        np.testing.assert_allclose(other[path], delta, atol=1e-6 * np.abs(delta).max())


def test_float16_output_is_within_its_rounding(
    pair: TorchPair, exact: dict[str, np.ndarray], tmp_path: Path
):
    half = migrate(pair, tmp_path / "half.safetensors", "--dtype", "float16", "--format", "kohya")
    rows = {row["path"]: row["norm_in"] for row in half["modules"]}
    assert rows.keys() == exact.keys()
    rounded = deltas_by_diffusers(TINY_SSD, tmp_path / "half.safetensors")
    for path, norm in rows.items():
        assert np.linalg.norm(exact[path] - rounded[path]) <= 1e-3 * norm


@pytest.mark.parametrize(
    ("rank", "expected"), [("source", {4}), ("2", {2}), ("exact", {8}), ("energy=0.9", None)]
)
def test_rank_out(
    pair: TorchPair,
    exact: dict[str, np.ndarray],
    tmp_path: Path,
    rank: str,
    expected: set[int] | None,
):
    report = migrate(pair, tmp_path / "out.safetensors", "--rank", rank)
    found = deltas_by_diffusers(TINY_SSD, tmp_path / "out.safetensors")
    ranks = {row["rank_out"] for row in report["modules"]}
    if expected is not None:
        assert ranks == expected
    for row in report["modules"]:
        whole = exact[row["path"]]
        best = reference.truncate(whole, row["rank_out"])
        share = np.sum(best**2) / np.sum(whole**2)
        assert np.linalg.norm(found[row["path"]] - best) <= 1e-4 * row["norm_in"]
        assert row["kept"] == pytest.approx(share, abs=1e-4)
        if rank == "energy=0.9":
            assert share >= 0.9 - 1e-4
            shorter = reference.truncate(whole, row["rank_out"] - 1)
            assert np.sum(shorter**2) / np.sum(whole**2) < 0.9 + 1e-4


def test_rescale_and_scale(pair: TorchPair, tmp_path: Path):
    report = migrate(pair, tmp_path / "out.safetensors", "--rescale", "norm", "--scale", "0.5")
    for row in report["modules"]:
        assert row["norm_out"] == pytest.approx(0.5 * row["norm_in"], rel=1e-4)
