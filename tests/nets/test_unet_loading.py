"""UNets in every container, there and back; what is proved by forward passes, not by shapes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import checkpoints
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import unets
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from numpy.testing import assert_allclose, assert_array_equal
from patience import UNTIL_HUNG

import prolora_jax as pl
from prolora_jax.architectures.flax_trees import leaves, nested, unet_from_flax, unet_to_flax
from prolora_jax.errors import BaseModelError, OutputError, Refusal, UsageError

CONFIG = unets.SMALL["sdxl"]
SQUARE = "down_blocks_1/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
ATOL = 1e-5


@pytest.fixture(scope="module")
def torch_net() -> UNet2DConditionModel:
    return unets.torch_net(CONFIG)


@pytest.fixture(scope="module")
def given() -> unets.Inputs:
    return unets.inputs(CONFIG)


@pytest.fixture(scope="module")
def want(torch_net, given) -> np.ndarray:
    return unets.predicted_by_torch(torch_net, given)


@pytest.fixture(scope="module")
def folder(torch_net, tmp_path_factory) -> Path:
    return unets.save(torch_net, tmp_path_factory.mktemp("net") / "unet")


@pytest.fixture(scope="module")
def loaded(folder):
    return pl.load_unet(folder)


def assert_same(found: Any, expected: Any) -> None:
    found, expected = dict(leaves(found)), dict(leaves(expected))
    assert found.keys() == expected.keys()
    for place, array in expected.items():
        assert found[place].dtype == array.dtype, place
        assert_array_equal(found[place], array, err_msg=place)


def test_a_forgotten_transpose_is_noticed(loaded, given, want):
    net, params = loaded
    assert_allclose(unets.predicted(net, params, given), want, rtol=0, atol=ATOL)
    flat = dict(leaves(params))
    assert flat[SQUARE].shape[0] == flat[SQUARE].shape[1]
    wrong = pl.unet_to_flax(pl.unet_from_flax(params))
    level: Any = wrong
    for name in SQUARE.split("/")[:-1]:
        level = level[name]
    level["kernel"] = level["kernel"].T
    assert np.abs(unets.predicted(net, wrong, given) - want).max() > 100 * ATOL


def test_there_and_back(torch_net, loaded):
    state = {key: tensor.numpy() for key, tensor in torch_net.state_dict().items()}
    tree = unet_to_flax(state)
    assert_same(tree, loaded[1])
    for wrapped in (tree, {"params": tree}, {"unet": tree}, {"params": {"unet": tree}, "step": 3}):
        assert_same(unet_from_flax(wrapped), state)


def test_every_container(torch_net, loaded, given, want, folder, tmp_path):
    net, params = loaded
    host = jax.tree.map(np.asarray, params)
    raw = tmp_path / "flax" / "diffusion_flax_model.msgpack"
    raw.parent.mkdir()
    raw.write_bytes(flax.serialization.to_bytes(host))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", host)
    ldm = checkpoints.save_single_file(tmp_path / "a.safetensors", checkpoints.ldm_state(torch_net))
    bare = checkpoints.save_single_file(tmp_path / "b.safetensors", torch_net.state_dict())
    torch_net.save_pretrained(tmp_path / "cut", max_shard_size="40KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    for place in (raw, raw.parent, tmp_path / "orbax", ldm, bare, tmp_path / "cut"):
        same, found = pl.load_unet(place, config=CONFIG)
        assert same == net
        assert_same(found, params)
    # The pipeline's folder stands for the UNet in it.
    assert_same(pl.load_unet(folder.parent)[1], params)
    assert_allclose(unets.predicted(net, found, given), want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("container", ["safetensors", "msgpack", "orbax"])
def test_what_is_written_is_read_by_us(container, loaded, tmp_path):
    net, params = loaded
    pl.save_unet(tmp_path / "unet", net.config, params, container=container)
    for place in (tmp_path, tmp_path / "unet"):
        same, found = pl.load_unet(place)
        assert same == net
        assert_same(found, params)
    with pytest.raises(OutputError, match="found a file; expected a folder without a UNet"):
        pl.save_unet(tmp_path / "unet", net.config, params, container=container)


def test_torch_reads_what_is_written(loaded, given, want, tmp_path):
    net, params = loaded
    pl.save_unet(tmp_path, net.config, params)
    again = UNet2DConditionModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert_array_equal(unets.predicted_by_torch(again, given), want)


def test_flax_and_orbax_read_what_is_written(loaded, given, want, tmp_path):
    net, params = loaded
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    pl.save_unet(tmp_path / "a", net.config, half, container="msgpack")
    written = (tmp_path / "a" / "diffusion_flax_model.msgpack").read_bytes()
    assert written == flax.serialization.to_bytes(jax.tree.map(np.asarray, half))
    assert_same(flax.serialization.msgpack_restore(written), half)
    pl.save_unet(tmp_path / "b", net.config, params, container="orbax")
    with ocp.StandardCheckpointer() as checkpointer:
        restored: Any = checkpointer.restore(tmp_path / "b" / "params", params)
    assert_allclose(unets.predicted(net, restored, given), want, rtol=0, atol=ATOL)


def test_an_adapter_in_the_tree_does_what_peft_does(folder, given, loaded, tmp_path):
    unet = unets.torch_net(CONFIG)
    builders.add_lora(unet, targets=builders.EVERYTHING, alpha=2)
    want = unets.predicted_by_torch(unet, given)
    file = builders.save_by_diffusers(unet, tmp_path)
    spec = pl.load_base_model(folder).spec
    adapter = pl.load_adapter(file, spec)
    tree = pl.to_flax(adapter, spec)
    net, params = loaded
    flat = dict(leaves(params))
    factors = dict(leaves(tree["unet"]))
    for place in [p for p in factors if p.endswith("lora-default/down/kernel")]:
        layer = place.removesuffix("/lora-default/down/kernel")
        down, up = factors[place], factors[f"{layer}/lora-default/up/kernel"]
        flat[f"{layer}/kernel"] += np.einsum("...r,ro->...o", down, up.reshape(up.shape[-2:]))
    found = unets.predicted(net, nested(flat), given)
    assert np.abs(found - unets.predicted(net, params, given)).max() > 0.1
    assert_allclose(found, want, rtol=0, atol=1e-4)
    back = pl.from_flax(tree, spec)
    assert {m.path for m in back.modules} == {m.path for m in adapter.modules}


def test_no_torch_is_needed(folder):
    code = f"""
import sys
for oracle in ("torch", "diffusers", "transformers"):
    sys.modules[oracle] = None
import prolora_jax as pl
assert "flax" not in sys.modules
net, params = pl.load_unet({str(folder)!r}, dtype="bfloat16")
assert params["conv_in"]["bias"].dtype == "bfloat16" == net.dtype
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=UNTIL_HUNG
    )
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_loaded(folder, loaded, tmp_path):
    weights = folder / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UsageError, match="no such file or folder"):
        pl.load_unet(tmp_path / "none")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(weights.read_bytes())
    for text, match, code in (
        (None, "found no config.json beside the weights", Refusal.MISSING_FILE),
        ("{", r"found no JSON \(Expecting property name", Refusal.UNSUPPORTED_CONFIG),
        ("[]", "found no JSON object", Refusal.UNSUPPORTED_CONFIG),
        ('{"act_fn": "mish"}', "config.json: field act_fn", Refusal.UNSUPPORTED_CONFIG),
    ):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(BaseModelError, match=match) as caught:
            pl.load_unet(alone)
        assert caught.value.code is code
    for config, match in (
        (unets.SMALL["vega"], "found tensor .* expected none of this name"),
        (CONFIG | {"transformer_layers_per_block": (1, 1, 3)}, "found no tensor .* expected one"),
        (CONFIG | {"cross_attention_dim": 16}, r"of shape \(16, 12\); expected \(16, 16\)"),
    ):
        with pytest.raises(BaseModelError, match=match) as caught:
            pl.load_unet(folder, config=config)
        assert caught.value.code is Refusal.SHAPE_MISMATCH
    net, params = loaded
    broken = dict(params) | {"conv_in": {"kernel": params["conv_in"]["kernel"]}}
    with pytest.raises(BaseModelError, match=r"params: found no tensor conv_in\.bias"):
        pl.save_unet(tmp_path / "out", net.config, broken)
