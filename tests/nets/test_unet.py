"""The Flax UNet against torch diffusers for every base; tests/stock has diffusers' own Flax one."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unets
from numpy.testing import assert_allclose

from prolora_jax.architectures.flax_trees import flax_table, leaves
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.errors import UsageError
from prolora_jax.nets.unet.config import from_diffusers
from prolora_jax.nets.unet.loading import initial_params, load_unet
from prolora_jax.nets.unet.unet import UNet

# Millions of parameters, as published or counted by diffusers.
MILLIONS = {
    "sd15": 859.520964,
    "sd21": 865.910724,
    "sdxl": 2567.463684,
    "sdxl-refiner": 2259.5,
    "ssd-1b": 1331.334404,
    "vega": 745.225604,
    "koala-700m": 782.8,
    "koala-1b": 1161.2,
    "bk-sdm-base": 579.384964,
    "bk-sdm-small": 482.3,
    "bk-sdm-tiny": 323.384964,
}


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {place: leaf.shape for place, leaf in leaves(tree)}


def predict(net: UNet, params: Any, given: unets.Inputs) -> jax.Array:
    return jnp.asarray(net.apply({"params": params}, *given))


@pytest.mark.parametrize("name", unets.SMALL)
def test_predictions_equal_torch(name, tmp_path):
    config = unets.SMALL[name]
    torch_net, given = unets.torch_net(config), unets.inputs(config)
    net, params = load_unet(unets.save(torch_net, tmp_path))
    want = unets.predicted_by_torch(torch_net, given)
    assert np.abs(want).max() > 0.5
    assert_allclose(unets.predicted(net, params, given), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", unets.PUBLISHED)
def test_full_sizes(name):
    config = unets.PUBLISHED[name]
    net = UNet(from_diffusers(config))
    small = unets.inputs(config | {"projection_class_embeddings_input_dim": 36}, batch=1)
    sample, times, text, added = small
    if added is not None:
        pooled = config["projection_class_embeddings_input_dim"] - added["time_ids"].size * 256
        added["text_embeds"] = np.zeros((1, pooled), np.float32)
    tree: Any = jax.eval_shape(net.init, jax.random.key(0), sample, times, text, added)
    found = shapes(tree["params"])
    assert found == flax_table(unet_table(CONFIGS[name]))  # test_flax_names has its digest
    count = sum(int(np.prod(shape)) for shape in found.values()) / 1e6
    assert count == pytest.approx(MILLIONS[name], abs=0.05 if MILLIONS[name] * 10 % 1 == 0 else 0)


@pytest.fixture(scope="module")
def pruned() -> tuple[UNet, Any, unets.Inputs]:
    net = UNet(from_diffusers(unets.SMALLEST))
    params = initial_params(net.config)
    params["conv_out"]["kernel"] += 0.1
    return net, params, unets.inputs(unets.SMALLEST)


def test_bfloat16(pruned):
    net, params, given = pruned
    half = net.clone(dtype=jnp.bfloat16)
    weights = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    want = unets.predicted(net, params, given)
    with jax.numpy_dtype_promotion("standard"):  # norms of linen go by way of float32
        found = unets.predicted(half, weights, given)
    assert found.dtype == jnp.bfloat16
    error = np.abs(found.astype(np.float32) - want).max() / np.abs(want).max()
    assert 1e-4 < error < 0.05


def test_remat_changes_nothing_but_memory(pruned):
    net, params, given = pruned

    def loss(params: Any, remat: bool) -> jax.Array:
        return jnp.square(predict(net.clone(remat=remat), params, given)).mean()

    values = [
        jax.jit(
            jax.value_and_grad(lambda p, remat=remat: loss(p, remat)),
            compiler_options=unets.QUICK,
        )(params)
        for remat in (False, True)
    ]
    kept, again = (jax.tree.map(np.asarray, value) for value in values)
    assert all(np.abs(gradient).max() > 0 for gradient in jax.tree.leaves(kept[1]))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, again)
    jaxpr = str(jax.make_jaxpr(lambda p: loss(p, True))(params))
    assert (
        jaxpr.count("checkpoint[") + jaxpr.count("remat2[") == 7 + 4
    )  # resnets, transformer blocks


def test_odd_sizes_and_one_time_for_all(pruned):
    net, params, _ = pruned
    config: Any = {"cross_attention_dim": 12, "addition_embed_type": "text_time"}
    given = unets.inputs(config | {"projection_class_embeddings_input_dim": 40}, size=7)
    sample, _, text, added = given
    found = jax.eval_shape(net.apply, {"params": params}, sample, 3, text, added)
    assert found.shape == (2, 4, 7, 7)


def test_sizes_that_are_not_given(pruned):
    net, params, (sample, times, text, _) = pruned
    with pytest.raises(UsageError, match=r"found \[\]; expected text_embeds and time_ids"):
        jax.eval_shape(net.apply, {"params": params}, sample, times, text)


def test_new_nets_predict_nothing(pruned):
    net, _, given = pruned
    assert not unets.predicted(net, initial_params(net.config), given).any()
    assert (
        initial_params(replace(net.config, heads=(2, 2)), dtype=jnp.float16)["conv_in"][
            "bias"
        ].dtype
        == jnp.float16
    )
