"""The laboratory's nets: a small UNet of the Stable Diffusion family, and its pruned child."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.architectures.flax_trees import unet_from_flax, unet_to_flax
from prolora_jax.architectures.unet.table import UNetTensors, unet_table
from prolora_jax.evaluation.laboratory.data import TEXT_WIDTH, text_table
from prolora_jax.evaluation.laboratory.diffusion import Predict
from prolora_jax.nets.unet.config import UNetConfig
from prolora_jax.nets.unet.unet import UNet

Params = dict[str, Any]
BLOCK_NUMBER = re.compile(r"(?<=\.transformer_blocks\.)\d+")
CHUNK = 64
"""Pictures that go through a net at once outside training: one shape, compiled once."""


def full_net(width: int = 64, depth: int = 2) -> UNetConfig:
    """The source's shape: attention in the middle, `depth` transformer blocks everywhere."""
    return UNetConfig(
        UNetTensors(
            block_out_channels=(width,),
            down_depths=(depth,),
            up_depths=(depth,),
            layers_per_block=1,
            mid_depth=depth,
            cross_attention_dim=TEXT_WIDTH,
            linear_projection=True,
        ),
        heads=(2,),
        norm_groups=8,
    )


def pruned_net(width: int = 64, depth: int = 2) -> UNetConfig:
    """As SSD-1B is to SDXL: no attention in the middle, slots that lost transformer blocks."""
    return UNetConfig(
        UNetTensors(
            block_out_channels=(width,),
            down_depths=((depth - 1,),),
            up_depths=((depth, depth - 1),),
            layers_per_block=1,
            mid="resnet",
            cross_attention_dim=TEXT_WIDTH,
            linear_projection=True,
        ),
        heads=(2,),
        norm_groups=8,
    )


def pruned_params(params: Mapping[str, Any], child: UNetConfig) -> Params:
    """The child's parameters out of its parent's: tensors of the same name, the first blocks.

    Every slot that lost blocks loses its last ones, as SDXL's slots of two did in SSD-1B.
    """
    parent = unet_from_flax(params)
    kept = {key: parent[key] for key in unet_table(child.tensors)}
    return jax.tree.map(jnp.asarray, unet_to_flax(kept))


def kept_number(block: int) -> int:
    """The parent's number of a shifted child's block: 0, 2, 5, 8, ..., as SSD-1B keeps them."""
    return 3 * block - 1 if block else 0


def kept_blocks(depth: int) -> list[int]:
    """Blocks of a stack that a shifted child keeps."""
    return [number for number in map(kept_number, range(depth)) if number < depth]


def shifted_params(params: Mapping[str, Any], child: UNetConfig) -> Params:
    """The child's parameters out of its parent's, the kept blocks of each stack renumbered.

    So a block of the child has the name of another block of its parent.
    """
    parent, kept = unet_from_flax(params), {}
    for key in unet_table(child.tensors):
        place = BLOCK_NUMBER.search(key)
        of = key
        if place:
            of = f"{key[: place.start()]}{kept_number(int(place[0]))}{key[place.end() :]}"
        kept[key] = parent[of]
    return jax.tree.map(jnp.asarray, unet_to_flax(kept))


@cache
def forward(config: UNetConfig) -> Any:
    """The compiled net: `(params, noisy, times in [0, 1], words) -> v`; one for all parameters."""
    net, table = UNet(config), jnp.asarray(text_table())

    def apply(params: Params, noisy: jax.Array, times: jax.Array, words: jax.Array) -> jax.Array:
        return net.apply({"params": params}, noisy, 1000 * times, table[words])  # pyright: ignore[reportReturnType]

    return apply


@cache
def _compiled(config: UNetConfig) -> Any:
    return jax.jit(forward(config))


def predictor(config: UNetConfig, params: Params) -> Predict:
    """A net and its parameters as a function of NumPy arrays, any number of pictures."""
    apply = _compiled(config)

    def predict(noisy: np.ndarray, times: np.ndarray, words: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(noisy), CHUNK):
            rows = slice(start, start + CHUNK)
            arrays = [_filled(array[rows]) for array in (noisy, times, words)]
            parts.append(np.asarray(apply(params, *arrays))[: len(noisy[rows])])
        return np.concatenate(parts)

    return predict


def _filled(array: np.ndarray) -> np.ndarray:
    """`CHUNK` rows: a shorter last chunk would be compiled again."""
    missing = CHUNK - len(array)
    return np.concatenate((array, np.zeros((missing, *array.shape[1:]), array.dtype)))
