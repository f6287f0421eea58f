"""CLIP's text encoders against torch's, and their parameter trees against transformers' Flax's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipelines
import torch
from numpy.testing import assert_allclose
from stock_trees import TEXTS, stock_tree
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from prolora_jax.architectures.flax_parts import text_encoder_to_flax
from prolora_jax.architectures.flax_trees import leaves
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.nets.text.clip import ClipText, ClipTextEncoder
from prolora_jax.nets.text.config import ClipConfig, clip_config

RTOL = 1e-5  # of the largest number; they are about 1e-6 apart
END = 513
# The real shapes of one layer: OpenAI's CLIP-L, OpenCLIP's bigG.
REAL = {"num_hidden_layers": 1, "vocab_size": 600, "bos_token_id": 512, "eos_token_id": END}
CLIP_L = REAL | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
BIG_G = REAL | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


def prompts(length: int) -> np.ndarray:
    """Two of other lengths, padded by the token of their end; a third is filled with another."""
    ids = np.random.default_rng(0).integers(0, 500, (3, length))
    ids[:, 0] = 512
    ids[0, 5:] = ids[1, length - 1 :] = ids[2, 3] = END
    ids[2, 4:] = 0
    return ids.astype(np.int32)


def found_by(net: Any, ids: np.ndarray) -> tuple[ClipText, ClipTextEncoder]:
    """What ours says, with the parameters of torch's."""
    config = clip_config(net.config.to_dict())
    ours = ClipTextEncoder(config, projected=isinstance(net, CLIPTextModelWithProjection))
    params = text_encoder_to_flax({k: a.numpy() for k, a in net.state_dict().items()})
    params = jax.tree.map(lambda a: jnp.asarray(np.ascontiguousarray(a)), params)
    return jax.jit(lambda p, ids: ours.apply({"params": p}, ids))(params, ids), ours


def assert_close(found: Any, want: torch.Tensor) -> None:
    expected = want.numpy()
    assert expected.std() > 0.01
    assert_allclose(found, expected, rtol=0, atol=RTOL * np.abs(expected).max())


def tower(net: Any) -> Any:
    """Since transformers 5 the class without a projection is its own tower."""
    return net if isinstance(net, CLIPTextModel) else net.text_model


def assert_as_torch(net: Any, length: int) -> None:
    ids = prompts(length)
    with torch.no_grad():
        for layer in tower(net).encoder.layers:  # as new, all tokens look everywhere alike
            layer.self_attn.q_proj.weight *= 10
        want = net(torch.from_numpy(ids).long(), output_hidden_states=True)
    found, _ = found_by(net, ids)
    pooled = want.pooler_output if isinstance(net, CLIPTextModel) else want.text_embeds
    assert_close(found.last, want.last_hidden_state)
    assert_close(found.pooled, pooled)
    assert len(found.hidden) == len(want.hidden_states) == net.config.num_hidden_layers + 1
    for mine, theirs in zip(found.hidden, want.hidden_states, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("end", [END, 2])
@pytest.mark.parametrize(("projected", "act"), [(False, "quick_gelu"), (True, "gelu")])
def test_embeddings_equal_torch(projected, act, end):
    net = tiny_pipelines.text_encoder(1, projected=projected, act=act, width=16)
    net.config.eos_token_id = tower(net).eos_token_id = end
    assert_as_torch(net, tiny_pipelines.LENGTH)


@pytest.mark.parametrize("config", [CLIP_L, BIG_G], ids=["clip-l", "openclip-bigg"])
def test_one_layer_of_real_shape_equals_torch(config):
    torch.manual_seed(0)
    kind = CLIPTextModelWithProjection if config is BIG_G else CLIPTextModel
    assert_as_torch(kind(CLIPTextConfig(**config)).eval(), 77)


def shapes(tree: Any) -> dict[str, Any]:
    return {place: leaf.shape for place, leaf in leaves(tree)}


@pytest.mark.parametrize("name", TEXTS)
def test_the_tree_is_that_of_transformers(name):
    projected = "projection_dim" in TEXTS[name]
    ours = ClipTextEncoder(clip_config(TEXTS[name]), projected=projected)
    ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    tree: Any = jax.eval_shape(ours.init, jax.random.key(0), ids)
    assert shapes(tree["params"]) == stock_tree(name)


def test_half_precision():
    net = tiny_pipelines.text_encoder(1, projected=True, act="gelu", width=16)
    ids = prompts(tiny_pipelines.LENGTH)
    full, ours = found_by(net, ids)
    params = text_encoder_to_flax({k: a.numpy() for k, a in net.state_dict().items()})
    half = ours.clone(dtype=jnp.bfloat16)
    params = jax.tree.map(lambda a: jnp.asarray(np.ascontiguousarray(a), jnp.bfloat16), params)
    with jax.numpy_dtype_promotion("standard"):  # norms of linen go by way of float32
        found: Any = half.apply({"params": params}, jnp.asarray(ids))
    assert {a.dtype.name for a in jax.tree.leaves(found)} == {"bfloat16"}
    error = np.abs(np.asarray(found.last, np.float32) - full.last).max() / np.abs(full.last).max()
    assert 1e-4 < error < 0.05


def test_what_is_missing_has_transformers_defaults():
    stock, ours = CLIPTextConfig(), clip_config({"hidden_act": None})
    assert ours == ClipConfig()
    for name in ClipConfig.__dataclass_fields__:
        assert getattr(ours, name) == getattr(stock, name), name


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_act": "mish"}, "x: field hidden_act is 'mish'; expected 'quick_gelu' or 'gelu'"),
        ({"model_type": "clip"}, "field model_type is 'clip'; expected 'clip_text_model'; only"),
        ({"quantization_config": {}}, "field quantization_config is {}; expected null"),
        ({"is_decoder": True}, "field is_decoder is True; expected False"),
        ({"hidden_size": "8"}, "field hidden_size is '8'; expected a positive number"),
        ({"num_hidden_layers": True}, "field num_hidden_layers is True; expected a positive"),
        ({"vocab_size": 0}, "field vocab_size is 0; expected a positive number"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3; expected a divisor of .*, 512"),
        ({"layer_norm_eps": 0}, "field layer_norm_eps is 0; expected a number between 0 and 1"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id is \[1, 2\]; expected one whole number"),
    ],
)
def test_what_is_not_supported(change, match):
    with pytest.raises(BaseModelError, match=match) as caught:
        clip_config(change, origin="x")
    assert caught.value.code is Refusal.UNSUPPORTED_CONFIG
