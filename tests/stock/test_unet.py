"""Our UNet against diffusers' own Flax UNet, where that can express it."""

from typing import Any

import jax
import numpy as np
import pytest
import unets
from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel
from flax.core import unfreeze
from numpy.testing import assert_allclose

from prolora_jax.architectures.flax_trees import leaves
from prolora_jax.nets.promotion import numpy_promotion
from prolora_jax.nets.unet.config import from_diffusers
from prolora_jax.nets.unet.loading import initial_params
from prolora_jax.nets.unet.unet import UNet


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {place: leaf.shape for place, leaf in leaves(tree)}


@pytest.mark.parametrize("name", unets.STOCK)
def test_tree_and_predictions_equal_diffusers_flax(name):
    config, given = unets.STOCK[name], unets.inputs(unets.STOCK[name])
    ours = UNet(from_diffusers(config))
    params = initial_params(ours.config)
    other = initial_params(ours.config, seed=1)["conv_in"]["kernel"]
    params["conv_out"]["kernel"] = other.swapaxes(2, 3)
    stock: Any = FlaxUNet2DConditionModel(**config)
    with numpy_promotion():
        tree: Any = jax.eval_shape(stock.init_weights, jax.random.key(0))
        run = jax.jit(
            lambda params, *given: stock.apply({"params": params}, *given).sample,
            compiler_options=unets.QUICK,
        )
        want = np.asarray(run(params, *given))
    assert shapes(params) == shapes(unfreeze(tree))
    # Theirs has GELU by tanh and another epsilon in one norm.
    assert_allclose(unets.predicted(ours, params, given), want, rtol=0, atol=1e-3)
