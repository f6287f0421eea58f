"""Biases and norms beside the pairs, on running nets: merged, or named as left out."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import builders
import numpy as np
import pytest
import torch
import unets
from numpy.testing import assert_allclose
from peft import IA3Config, get_peft_model
from safetensors.numpy import load_file, save_file

import prolora_jax as pl
from prolora_jax.errors import AdapterRefused
from prolora_jax.nets.adapters.lora import attach, merge, unmerge
from prolora_jax.nets.unet.loading import load_unet

pytestmark = pytest.mark.usefixtures("little_optimized")
ATOL = 2e-5
NORM = "down_blocks.0.resnets.0.norm1"


class Made(NamedTuple):
    """A net, and an adapter's file for it with what torch predicts with it."""

    net: Any
    params: Any
    spec: Any
    folder: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("vectors")
    net, params = load_unet(unets.save(unets.torch_net(unets.SMALLEST), folder / "base"))
    return Made(net, params, pl.load_base_model(folder / "base").spec, folder)


def with_biases_and_a_norm(folder: Path) -> tuple[Path, np.ndarray]:
    """peft's `lora_bias`, and the difference of a norm; torch says what they predict."""
    one = unets.torch_net(unets.SMALLEST)
    with warnings.catch_warnings():  # peft takes its own biases for factors that have lost an axis
        warnings.filterwarnings("ignore", message=r".*invalid shape: .*lora_B\.bias")
        builders.add_lora(one, targets=["to_out.0", "conv1"], rank=2, alpha=3, lora_bias=True)
        file = builders.save_by_diffusers(one, folder)
    rng = np.random.default_rng(0)
    norm: Any = one.get_submodule(NORM)
    name = "lora_unet_" + NORM.replace(".", "_")
    # A file of norms alone is no adapter: a pair without an update stands beside them.
    pair = "lora_unet_down_blocks_0_resnets_0_conv2"
    beside = {
        f"{pair}.lora_down.weight": np.ones((1, 8, 3, 3), np.float32),
        f"{pair}.lora_up.weight": np.zeros((8, 1, 1, 1), np.float32),
    }
    with torch.no_grad():
        for key, part in (("w_norm", norm.weight), ("b_norm", norm.bias)):
            added = (0.3 * rng.standard_normal(part.shape)).astype(np.float32)
            part += torch.from_numpy(added)
            beside[f"{name}.{key}"] = added
    save_file(beside, folder / "norm.safetensors")
    assert sum(key.endswith("lora_B.bias") for key in load_file(file)) > 1
    return file, unets.predicted_by_torch(one, unets.inputs(unets.SMALLEST))


def test_merged_as_torch_and_taken_off_again(made: Made, tmp_path: Path):
    file, want = with_biases_and_a_norm(tmp_path)
    given = unets.inputs(unets.SMALLEST)
    pairs = pl.load_adapter(file, made.spec, structured=True)
    norm = pl.load_adapter(tmp_path / "norm.safetensors", made.spec, structured=True)
    merged = merge(merge(made.params, pairs), norm)
    assert_allclose(unets.predicted(made.net, merged, given), want, rtol=0, atol=ATOL)
    back = unmerge(unmerge(merged, norm), pairs)
    plain = unets.predicted(made.net, made.params, given)
    assert np.abs(plain - want).max() > 100 * ATOL
    assert_allclose(unets.predicted(made.net, back, given), plain, rtol=0, atol=ATOL)


def test_biases_that_ia3_scales_are_merged(made: Made, tmp_path: Path):
    config = IA3Config(target_modules=["to_out.0", "conv1"], feedforward_modules=[])
    model: Any = get_peft_model(unets.torch_net(unets.SMALLEST), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.copy_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(tmp_path))
    given = unets.inputs(unets.SMALLEST)
    want = unets.predicted_by_torch(model.merge_and_unload(), given)
    adapter = pl.load_adapter(tmp_path, made.spec, structured=True)
    merged = merge(made.params, adapter)
    assert_allclose(unets.predicted(made.net, merged, given), want, rtol=0, atol=ATOL)


def test_beside_the_kernels_they_are_named_as_left_out(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    file, _ = with_biases_and_a_norm(tmp_path)
    attach(made.params, {"a": pl.load_adapter(file, made.spec, structured=True)})
    (said,) = [record.getMessage() for record in caplog.records]
    assert "biases and norms are not put beside the kernels" in said
    assert str(file) in said


def test_a_width_that_is_not_the_trees_is_refused(made: Made, tmp_path: Path):
    with_biases_and_a_norm(tmp_path)
    norm = pl.load_adapter(tmp_path / "norm.safetensors", made.spec, structured=True)
    wider = tuple(replace(one, array=np.ones(5)) for one in norm.companions)
    with pytest.raises(AdapterRefused, match=r"_norm: found .*\(5,\).*shape \(8,\); expected"):
        merge(made.params, replace(norm, companions=wider))
    layers = tuple(replace(one, part="layer") for one in norm.companions)
    with pytest.raises(AdapterRefused, match=r"found layer of shape .*in the parameters none"):
        merge(made.params, replace(norm, companions=layers))
