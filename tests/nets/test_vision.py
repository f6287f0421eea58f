"""Encoders of pictures against transformers' torch nets, and their trees against its Flax ones."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file
from stock_trees import VISIONS, stock_tree
from vision_nets import CONFIGS, REAL, arrays, pixels, seen_by_ours, seen_by_torch, torch_encoder

from prolora_jax.architectures.flax_trees import leaves
from prolora_jax.architectures.vision.names import clip_vision_to_flax, dinov2_to_flax
from prolora_jax.errors import BaseModelError, UsageError
from prolora_jax.nets.vision.config import PUBLISHED, VisionConfig, vision_config
from prolora_jax.nets.vision.positions import cubic_matrix
from prolora_jax.nets.vision.vit import VisionTransformer

RTOL = 1e-5  # of the largest number: float32 sums in another order


def in_flax(config: dict[str, Any], tensors: Any) -> Any:
    turned = clip_vision_to_flax if "clip" in config["model_type"] else dinov2_to_flax
    return turned(tensors)


def assert_same(found: Any, want: Any) -> None:
    for one, other in zip(found, want, strict=True):
        assert_allclose(one, other, rtol=0, atol=RTOL * np.abs(other).max())


def shapes_of(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    side = config.size
    made: Any = jax.eval_shape(
        VisionTransformer(config).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, side, side, 3), np.float32),
    )
    return {place: leaf.shape for place, leaf in leaves(made["params"])}


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_and_embeddings_equal_torch(name):
    config = CONFIGS[name]
    net, given = torch_encoder(config), pixels(config)
    params = in_flax(config, arrays(net))
    want = seen_by_torch(net, given)
    assert np.abs(want.embedding).max() > 0.5
    assert_same(seen_by_ours(config, params, given), want)


@pytest.mark.parametrize("name", CONFIGS)
def test_files_hold_what_nets_hold_whatever_its_name(name, tmp_path):
    # Since transformers 5 DINOv2's attention has other names in a net than in its file.
    net = torch_encoder(CONFIGS[name])
    net.save_pretrained(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    found, want = (dict(leaves(in_flax(CONFIGS[name], x))) for x in (file, arrays(net)))
    assert found.keys() == want.keys()
    for place, array in want.items():
        assert_array_equal(found[place], array, err_msg=place)


@pytest.mark.parametrize("name", REAL)
def test_a_layer_of_real_size_equals_torch(name):
    config = REAL[name]
    net, given = torch_encoder(config), pixels(config)
    params = in_flax(config, arrays(net))
    assert_same(seen_by_ours(config, params, given), seen_by_torch(net, given))


# Smaller, larger, not square, and with a rest that fills no patch.
@pytest.mark.parametrize("shape", [(12, 28), (45, 22)])
@pytest.mark.parametrize("name", ["quick_gelu", "dinov2", "registers"])
def test_pictures_of_other_sizes_equal_torch(name, shape):
    config = CONFIGS[name]
    net, given = torch_encoder(config), pixels(config, shape)
    if name == "quick_gelu":  # transformers' CLIP refuses what leaves a rest
        given = given[:, : shape[0] // 4 * 4, : shape[1] // 4 * 4]
    params = in_flax(config, arrays(net))
    assert_same(seen_by_ours(config, params, given), seen_by_torch(net, given))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [(37, 16), (16, 37), (5, 5), (3, 20), (20, 3)])
def test_positions_in_between_are_torchs(old, new, antialias):
    # The rows of a square of ones on the diagonal are resized to the matrix itself.
    found = torch.nn.functional.interpolate(
        torch.eye(old, dtype=torch.float64)[None, None],
        size=(new, old),
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    want = found[0, 0].numpy()
    assert_allclose(cubic_matrix(old, new, antialias=antialias), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", VISIONS)
def test_trees_equal_those_of_transformers_flax(name):
    assert shapes_of(vision_config(VISIONS[name])) == stock_tree(name)


# Millions of parameters; of DINOv2 as published, of CLIP without the text tower.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("clip-vit-l-14", 303.966),
        ("openclip-vit-h-14", 632.077),
        ("dinov2-small", 22.057),
        ("dinov2-base", 86.581),
        ("dinov2-large", 304.369),
        ("dinov2-large-registers", 304.373),
    ],
)
def test_published_sizes(name, millions):
    count = sum(int(np.prod(shape)) for shape in shapes_of(PUBLISHED[name]).values())
    assert count / 1e6 == pytest.approx(millions, abs=0.001)


def test_a_whole_clips_configuration():
    inner = {k: v for k, v in CONFIGS["gelu"].items() if k not in {"model_type", "projection_dim"}}
    whole = {"model_type": "clip", "vision_config": inner, "projection_dim": 7}
    assert vision_config(whole) == vision_config(CONFIGS["gelu"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip"}, "x.json: field model_type is 'siglip'; expected clip or"),
        ({"hidden_act": "relu"}, "field hidden_act is 'relu'; expected quick_gelu or gelu"),
        ({"use_swiglu_ffn": True}, "gated feed-forward nets are the giant model's"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5; expected a divisor of .* 24"),
        ({"image_size": 2}, "image_size is 2; expected at least one patch of 4"),
        ({"hidden_size": "24"}, "hidden_size is '24'; expected one positive whole number"),
        ({"num_channels": 4}, "num_channels is 4; expected 3"),
        ({"model_type": "clip"}, "vision_config is None; expected the configuration of CLIP's"),
    ],
)
def test_configurations_that_are_refused(changes, message):
    with pytest.raises(BaseModelError, match=message):
        vision_config(CONFIGS["dinov2"] | changes, origin="x.json")


def test_pictures_smaller_than_a_patch():
    net = VisionTransformer(vision_config(CONFIGS["dinov2"]))
    with pytest.raises(UsageError, match="pictures of 3 x 9 pixels: expected at least one patch"):
        jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 3, 9, 3), np.float32))
