"""The stored trees (tests/stock/trees) are those of the classes themselves.

To write them again: `PYTHONPATH=tests/support python tests/stock/test_trees.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.traverse_util
import jax
import pytest
import stock_trees
from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel
from diffusers.models.vae_flax import FlaxAutoencoderKL
from flax.core import unfreeze
from stock_trees import CLIP, TEXTS, UNETS, VAES, Shapes
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    Dinov2Config,
    FlaxCLIPModel,
    FlaxCLIPTextModel,
    FlaxDinov2Model,
)
from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModelWithProjection

from prolora_jax.nets.promotion import numpy_promotion

SD15: dict[str, Any] = {"cross_attention_dim": 768}
# Whole published UNets that the class can express, in its words.
PUBLISHED: dict[str, dict[str, Any]] = {
    "sd15": SD15,
    "sd21": {"cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "bk-sdm-small": SD15 | {"layers_per_block": 1, "mid_block_type": None},
}


def shapes_of(tree: Any) -> Shapes:
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(unfreeze(tree), sep="/")
    return {place: leaf.shape for place, leaf in flat.items()}


def of_unet(config: dict[str, Any]) -> Shapes:
    known = FlaxUNet2DConditionModel.__dataclass_fields__
    net = FlaxUNet2DConditionModel(**{k: v for k, v in config.items() if k in known})
    return shapes_of(jax.eval_shape(net.init_weights, jax.random.key(0)))


def of_vae(config: dict[str, Any]) -> Shapes:
    net: Any = FlaxAutoencoderKL(**config)
    return shapes_of(jax.eval_shape(net.init_weights, jax.random.key(0)))


def of_text(config: dict[str, Any]) -> Shapes:
    projected = "projection_dim" in config
    kind: Any = FlaxCLIPTextModelWithProjection if projected else FlaxCLIPTextModel
    return shapes_of(kind(CLIPTextConfig(**config), _do_init=False).params_shape_tree)


def of_clip_vision() -> Shapes:
    whole: Any = FlaxCLIPModel(CLIPConfig(**CLIP), _do_init=False)
    found = shapes_of(whole.params_shape_tree)
    return {place: shape for place, shape in found.items() if place.startswith("vis")}


def of_dinov2() -> Shapes:
    config = Dinov2Config(**stock_trees.VISIONS["dinov2"])
    return shapes_of(FlaxDinov2Model(config, _do_init=False).params_shape_tree)


MADE: dict[str, Callable[[], Shapes]] = {
    **{name: partial(of_unet, config) for name, config in UNETS.items()},
    **{name: partial(of_vae, config) for name, config in VAES.items()},
    **{name: partial(of_text, config) for name, config in TEXTS.items()},
    "clip-vision": of_clip_vision,
    "dinov2": of_dinov2,
}


def test_every_stored_tree_is_held_against_its_class():
    assert {path.stem for path in stock_trees.FOLDER.iterdir()} == set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_stored_trees_are_those_of_the_classes(name):
    with numpy_promotion():
        assert stock_trees.stock_tree(name) == MADE[name]()


@pytest.mark.parametrize("name", PUBLISHED)
def test_digests_are_those_of_the_class(name):
    with numpy_promotion():
        assert stock_trees.digest(of_unet(PUBLISHED[name])) == stock_trees.DIGESTS[name]


def main() -> None:
    for name, make in MADE.items():
        text = stock_trees.written(make()) + "\n"
        (stock_trees.FOLDER / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    main()
