"""Encoders in their authors' layouts: every number finds its name, and nothing gets lost.

The fused layouts are put together here, tensor by tensor, from random ones in transformers' names.
"""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from prolora_jax.architectures.clip.table import TextEncoderConfig, text_encoder_table
from prolora_jax.architectures.vision.dinov2 import dinov2_from_original
from prolora_jax.architectures.vision.open_clip import (
    text_from_open_clip,
    unwrapped,
    vision_from_csd,
    vision_from_open_clip,
)

WIDTH, LAYERS, OUT = 6, 2, 4
BOTH = ("weight", "bias")
Arrays = dict[str, np.ndarray]


def number(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def clip_layer(layer: str) -> Arrays:
    """A transformer layer in transformers' names."""
    found = {}
    for i, name in enumerate(("q_proj", "k_proj", "v_proj", "out_proj")):
        found[f"{layer}.self_attn.{name}.weight"] = number(WIDTH, WIDTH) + i
        found[f"{layer}.self_attn.{name}.bias"] = number(WIDTH) + i
    for name in ("layer_norm1", "layer_norm2"):
        found |= {f"{layer}.{name}.{leaf}": number(WIDTH) for leaf in BOTH}
    for name, shape in (("fc1", (9, WIDTH)), ("fc2", (WIDTH, 9))):
        found[f"{layer}.mlp.{name}.weight"] = number(*shape)
        found[f"{layer}.mlp.{name}.bias"] = number(shape[0])
    return found


def fused(theirs: Arrays, layer: str, block: str) -> Arrays:
    """The same layer as OpenAI's and OpenCLIP's code has it."""
    found = {}
    for leaf in BOTH:
        parts = [theirs[f"{layer}.self_attn.{x}_proj.{leaf}"] for x in "qkv"]
        found[f"{block}.attn.in_proj_{leaf}"] = np.concatenate(parts)
        found[f"{block}.attn.out_proj.{leaf}"] = theirs[f"{layer}.self_attn.out_proj.{leaf}"]
        found[f"{block}.ln_1.{leaf}"] = theirs[f"{layer}.layer_norm1.{leaf}"]
        found[f"{block}.ln_2.{leaf}"] = theirs[f"{layer}.layer_norm2.{leaf}"]
        found[f"{block}.mlp.c_fc.{leaf}"] = theirs[f"{layer}.mlp.fc1.{leaf}"]
        found[f"{block}.mlp.c_proj.{leaf}"] = theirs[f"{layer}.mlp.fc2.{leaf}"]
    return found


def vision() -> tuple[Arrays, Arrays]:
    """A vision tower in transformers' names, and in OpenCLIP's without any prefix."""
    root = "vision_model"
    theirs = {
        f"{root}.embeddings.class_embedding": number(WIDTH),
        f"{root}.embeddings.position_embedding.weight": number(5, WIDTH),
        f"{root}.embeddings.patch_embedding.weight": number(WIDTH, 3, 2, 2),
        "visual_projection.weight": number(OUT, WIDTH),
    }
    own = {
        "class_embedding": theirs[f"{root}.embeddings.class_embedding"],
        "positional_embedding": theirs[f"{root}.embeddings.position_embedding.weight"],
        "conv1.weight": theirs[f"{root}.embeddings.patch_embedding.weight"],
        "proj": np.ascontiguousarray(theirs["visual_projection.weight"].T),
    }
    for name, norm in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        for leaf in BOTH:
            theirs[f"{root}.{norm}.{leaf}"] = own[f"{name}.{leaf}"] = number(WIDTH)
    for i in range(LAYERS):
        layer = f"{root}.encoder.layers.{i}"
        theirs |= clip_layer(layer)
        own |= fused(theirs, layer, f"transformer.resblocks.{i}")
    return theirs, own


def text() -> tuple[Arrays, Arrays]:
    """A text tower in transformers' names, and in OpenCLIP's."""
    root = "text_model"
    theirs = {
        f"{root}.embeddings.token_embedding.weight": number(11, WIDTH),
        f"{root}.embeddings.position_embedding.weight": number(7, WIDTH),
        **{f"{root}.final_layer_norm.{leaf}": number(WIDTH) for leaf in BOTH},
        "text_projection.weight": number(OUT, WIDTH),
    }
    own = {
        "token_embedding.weight": theirs[f"{root}.embeddings.token_embedding.weight"],
        "positional_embedding": theirs[f"{root}.embeddings.position_embedding.weight"],
        **{f"ln_final.{leaf}": theirs[f"{root}.final_layer_norm.{leaf}"] for leaf in BOTH},
        "text_projection": np.ascontiguousarray(theirs["text_projection.weight"].T),
    }
    for i in range(LAYERS):
        layer = f"{root}.encoder.layers.{i}"
        theirs |= clip_layer(layer)
        own |= fused(theirs, layer, f"transformer.resblocks.{i}")
    return theirs, own


def assert_same(found: Arrays, want: Arrays) -> None:
    assert {*found} == {*want}
    for key, array in want.items():
        assert_array_equal(found[key], array)


def whole_open_clip() -> Arrays:
    """Both towers in one file, with all that is in HPSv2's."""
    more = {"logit_scale": np.float32(4.6) * np.ones(()), "attn_mask": number(7, 7)}
    return text()[1] | {f"visual.{key}": tensor for key, tensor in vision()[1].items()} | more


def test_both_towers_of_open_clip():
    whole = whole_open_clip()
    assert_same(vision_from_open_clip(whole), vision()[0])
    found = text_from_open_clip(whole)
    assert_same(found, text()[0])
    # The names of the table that pipelines' text encoders are read by.
    table = text_encoder_table(TextEncoderConfig(WIDTH, LAYERS, OUT))
    assert {*found} == {*table}


def test_what_is_unknown_keeps_its_name():
    whole = whole_open_clip() | {"visual.attn_pool.query": number(3), "odd": number(2)}
    assert "attn_pool.query" in vision_from_open_clip(whole)
    assert "odd" in text_from_open_clip(whole)


@pytest.mark.parametrize("before", ["", "module."])
def test_csd_is_a_tower_with_the_styles_projection(before):
    theirs, own = vision()
    style, content = number(WIDTH, 3), number(WIDTH, 5)
    file: Any = {f"{before}backbone.{k}": t for k, t in own.items() if k != "proj"}
    file |= {f"{before}last_layer_style": style, f"{before}last_layer_content": content}
    assert_same(vision_from_csd(file), theirs | {"visual_projection.weight": style.T})


def test_only_what_stands_before_every_key_is_taken_off():
    one, other = number(2), number(3)
    assert_same(unwrapped({"module.a": one, "module.b": other}), {"a": one, "b": other})
    assert_same(unwrapped({"module.a": one, "b": other}), {"module.a": one, "b": other})


def test_dinov2_of_its_authors():
    theirs, own = {}, {}

    def add(their: str, name: str, *shape: int) -> None:
        theirs[their] = own[name] = number(*shape)

    add("embeddings.cls_token", "cls_token", 1, 1, WIDTH)
    add("embeddings.mask_token", "mask_token", 1, WIDTH)
    add("embeddings.register_tokens", "register_tokens", 1, 4, WIDTH)
    add("embeddings.position_embeddings", "pos_embed", 1, 5, WIDTH)
    patches = "embeddings.patch_embeddings.projection"
    add(f"{patches}.weight", "patch_embed.proj.weight", WIDTH, 3, 2, 2)
    add(f"{patches}.bias", "patch_embed.proj.bias", WIDTH)
    for leaf in BOTH:
        add(f"layernorm.{leaf}", f"norm.{leaf}", WIDTH)
    for i in range(LAYERS):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        for leaf in BOTH:
            inner = (WIDTH,) if leaf == "weight" else ()
            parts = [number(WIDTH, *inner) + j for j in range(3)]
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                theirs[f"{layer}.attention.attention.{name}.{leaf}"] = part
            own[f"{block}.attn.qkv.{leaf}"] = np.concatenate(parts)
            add(
                f"{layer}.attention.output.dense.{leaf}", f"{block}.attn.proj.{leaf}", WIDTH, *inner
            )
            for name in ("norm1", "norm2"):
                add(f"{layer}.{name}.{leaf}", f"{block}.{name}.{leaf}", WIDTH)
            for name in ("fc1", "fc2"):
                add(f"{layer}.mlp.{name}.{leaf}", f"{block}.mlp.{name}.{leaf}", WIDTH, *inner)
        for name in ("1", "2"):
            add(f"{layer}.layer_scale{name}.lambda1", f"{block}.ls{name}.gamma", WIDTH)
    assert_same(dinov2_from_original(own), theirs)
    assert "head.weight" in dinov2_from_original(own | {"head.weight": number(2)})
