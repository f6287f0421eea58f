"""Encoders of pictures as transformers has them, with random weights, tiny or of one real layer."""

from functools import cache
from typing import Any

import jax
import numpy as np
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from prolora_jax.nets.vision.config import VisionConfig, vision_config
from prolora_jax.nets.vision.vit import Seen, VisionTransformer

TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "patch_size": 4,
    "image_size": 20,
}
_CLIP_TINY = TINY | {"model_type": "clip_vision_model", "intermediate_size": 40}
CONFIGS: dict[str, dict[str, Any]] = {
    "quick_gelu": _CLIP_TINY | {"projection_dim": 10, "hidden_act": "quick_gelu"},
    "gelu": _CLIP_TINY | {"projection_dim": 7, "hidden_act": "gelu"},
    "dinov2": TINY | {"model_type": "dinov2"},
    "registers": TINY | {"model_type": "dinov2_with_registers", "num_register_tokens": 3},
}
# One layer in the widths of the real ones, on pictures of a few patches.
_ONE = {"num_hidden_layers": 1, "patch_size": 14, "image_size": 28}
REAL: dict[str, dict[str, Any]] = {
    "clip-vit-l-14": CONFIGS["quick_gelu"]
    | _ONE
    | {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    | {"projection_dim": 768},
    "openclip-vit-h-14": CONFIGS["gelu"]
    | _ONE
    | {"hidden_size": 1280, "num_attention_heads": 16, "intermediate_size": 5120}
    | {"projection_dim": 1024},
    "dinov2-large": CONFIGS["dinov2"] | _ONE | {"hidden_size": 1024, "num_attention_heads": 16},
}
_KINDS = {
    "clip_vision_model": (CLIPVisionConfig, CLIPVisionModelWithProjection),
    "dinov2": (Dinov2Config, Dinov2Model),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
}


def torch_encoder(config: dict[str, Any], seed: int = 0) -> Any:
    """A net whose every parameter is random: also norms, biases and layer scales."""
    kind, model = _KINDS[config["model_type"]]
    net: Any = model(kind(**config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 0.5 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return net


def arrays(net: Any) -> dict[str, np.ndarray]:
    """Its state dict."""
    return {key: tensor.numpy() for key, tensor in net.state_dict().items()}


def pixels(config: dict[str, Any], shape: tuple[int, int] | None = None) -> np.ndarray:
    """Two normalised pictures, channels last."""
    rows, columns = shape or (config["image_size"],) * 2
    return np.random.default_rng(0).standard_normal((2, rows, columns, 3), np.float32)


def seen_by_torch(net: Any, given: np.ndarray) -> Seen:
    """What transformers' net makes of pictures."""
    with torch.no_grad():
        more = {"interpolate_pos_encoding": True} if hasattr(net, "visual_projection") else {}
        out = net(torch.from_numpy(given).permute(0, 3, 1, 2), **more)
    tokens = out.last_hidden_state
    if hasattr(net, "visual_projection"):
        with torch.no_grad():
            pooled = net.vision_model.post_layernorm(tokens[:, 0])
        return Seen(tokens.numpy(), pooled.numpy(), out.image_embeds.numpy())
    return Seen(tokens.numpy(), out.pooler_output.numpy(), out.pooler_output.numpy())


@cache
def _program(config: VisionConfig) -> Any:
    net = VisionTransformer(config)
    return jax.jit(lambda params, given: net.apply({"params": params}, given))


def seen_by_ours(config: dict[str, Any], params: Any, given: np.ndarray) -> Seen:
    """What our net makes of them."""
    run = _program(vision_config(config))
    return jax.tree.map(np.asarray, run(jax.tree.map(np.asarray, params), given))
