"""What tests/support writes as Flax trees is, bit for bit, what the stock converters make.

The ordinary suite compares with `checkpoints.flax_unet` and its like; this is why it may.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import builders
import checkpoints
import flax.serialization
import jax
import numpy as np
import pytest
import tiny_pipelines
from diffusers.models.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax
from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel
from diffusers.models.vae_flax import FlaxAutoencoderKL
from numpy.testing import assert_array_equal
from stock_trees import UNETS
from transformers import FlaxCLIPTextModel
from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModelWithProjection

from prolora_jax.architectures.flax_trees import leaves
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.nets.promotion import numpy_promotion


def assert_same(found: Any, expected: Any) -> None:
    found, expected = dict(leaves(found)), dict(leaves(expected))
    assert found.keys() == expected.keys()
    for place, array in expected.items():
        assert_array_equal(found[place], np.asarray(array), err_msg=place)


def converted(net: Any, flax_net: Any) -> Any:
    # The converter asks for initial weights to know the names; shapes do, and are quick.
    shapes: Any = SimpleNamespace(init_weights=partial(jax.eval_shape, flax_net.init_weights))
    with numpy_promotion():
        return convert_pytorch_state_dict_to_flax(dict(net.state_dict()), shapes)


@pytest.mark.parametrize("name", UNETS)
def test_unets(name):
    net = builders.build_unet(UNETS[name])
    known = FlaxUNet2DConditionModel.__dataclass_fields__
    stock = FlaxUNet2DConditionModel(**{k: v for k, v in UNETS[name].items() if k in known})
    assert_same(checkpoints.flax_unet(net.state_dict()), converted(net, stock))


def test_vaes():
    net: Any = tiny_pipelines.vae()
    known = FlaxAutoencoderKL.__dataclass_fields__
    stock: Any = FlaxAutoencoderKL(**{k: v for k, v in net.config.items() if k in known})
    assert_same(checkpoints.flax_vae(net.state_dict()), converted(net, stock))


@pytest.mark.parametrize("projected", [False, True])
def test_text_encoders_as_transformers_saves_them(projected, tmp_path):
    net = tiny_pipelines.text_encoder(1, projected=projected, act="gelu")
    net.save_pretrained(tmp_path / "torch")
    kind: Any = FlaxCLIPTextModelWithProjection if projected else FlaxCLIPTextModel
    with numpy_promotion():
        stock = kind.from_pretrained(tmp_path / "torch", from_pt=True)
    want = checkpoints.flax_text_encoder(net)
    assert_same(stock.params, want)
    folder = tmp_path / "net"
    unet = builders.build_unet(builders.TINY_XL)
    builders.save_folder(unet, folder)
    stock.save_pretrained(folder / "text_encoder")
    written = (folder / "text_encoder" / "flax_model.msgpack").read_bytes()
    assert_same(flax.serialization.msgpack_restore(written), want)
    model = load_base_model(folder)
    layers = model.spec.component("text_encoder")
    assert len(layers) == 3 * 6 + projected
    for path in layers:
        key = f"{path.removeprefix('text_encoder.')}.weight"
        assert_array_equal(model.weight(path), net.state_dict()[key].numpy(), err_msg=path)
