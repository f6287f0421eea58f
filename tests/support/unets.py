"""UNets of every base model in diffusers' words: as published, and small ones of the same build.

Small ones keep what tells the bases apart: number and kind of blocks, which attention has how many
transformer blocks, the middle block, the form of projections, what is embedded beside the time.
"""

from functools import cache
from pathlib import Path
from typing import Any

import builders
import jax
import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

ATTENDED, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP_ATTENDED, UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"
SD15: dict[str, Any] = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "down_block_types": (PLAIN, ATTENDED, ATTENDED),
    "up_block_types": (UP_ATTENDED, UP_ATTENDED, UP_PLAIN),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

# What diffusers' Flax UNet can express; its norms have 32 groups.
STOCK: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 24,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "sdxl": {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 24,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 40,
    },
}


def pruned(down: list, up: list) -> dict[str, Any]:
    return SDXL | {
        "transformer_layers_per_block": [0, *down],
        "reverse_transformer_layers_per_block": [*up, 1],
        "mid_block_type": "UNetMidBlock2D",
    }


# The published configurations, in diffusers' words.
PUBLISHED = {
    "sd15": SD15,
    "sd21": SD15
    | {
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "attention_head_dim": (5, 10, 20, 20),
    },
    "sdxl": SDXL,
    "sdxl-refiner": SDXL
    | {
        "block_out_channels": (384, 768, 1536, 1536),
        "cross_attention_dim": 1280,
        "attention_head_dim": (6, 12, 24, 24),
        "down_block_types": (PLAIN, ATTENDED, ATTENDED, PLAIN),
        "up_block_types": (UP_PLAIN, UP_ATTENDED, UP_ATTENDED, UP_PLAIN),
        "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 2560,
    },
    "ssd-1b": pruned([[2, 2], [4, 4]], [[4, 4, 10], [2, 1, 1]]),
    "vega": pruned([[1, 1], [2, 2]], [[2, 2, 2], [1, 1, 1]]),
    "koala-700m": SDXL
    | {
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2, 5),
        "mid_block_type": None,
    },
    "koala-1b": SDXL | {"layers_per_block": 1, "transformer_layers_per_block": (1, 2, 6)},
    "bk-sdm-base": SD15 | {"layers_per_block": 1},
    "bk-sdm-small": SD15 | {"layers_per_block": 1, "mid_block_type": None},
    "bk-sdm-tiny": SD15
    | {
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 1,
        "mid_block_type": None,
        "down_block_types": (ATTENDED,) * 3,
        "up_block_types": (UP_ATTENDED,) * 3,
    },
}

_SMALL = {
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 40,
}
_DEEP = {"block_out_channels": (8, 16, 16), "attention_head_dim": (1, 2, 4)}


def _nested(down: list, up: list) -> dict[str, Any]:
    names = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
    return _DEEP | dict(zip(names, ([0, *down], [*up, 1]), strict=True))


_CHANGES: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (8, 16, 16, 16), "attention_head_dim": 2},
    "sd21": {"block_out_channels": (8, 16, 16, 16), "attention_head_dim": (1, 2, 4, 4)},
    "sdxl": _DEEP | {"transformer_layers_per_block": (1, 1, 2)},
    "sdxl-refiner": {
        "block_out_channels": (8, 16, 16, 16),
        "attention_head_dim": (1, 2, 4, 4),
        "transformer_layers_per_block": 1,
        "projection_class_embeddings_input_dim": 36,
    },
    "ssd-1b": _nested([[1, 1], [1, 2]], [[1, 1, 2], [2, 1, 1]]),
    "vega": _nested([[1, 1], [1, 1]], [[1, 1, 1], [1, 1, 1]]),
    "koala-700m": _DEEP | {"transformer_layers_per_block": (1, 1, 2)},
    "koala-1b": _DEEP | {"transformer_layers_per_block": (1, 1, 3)},
    "bk-sdm-base": {"block_out_channels": (8, 16, 16, 16), "attention_head_dim": 2},
    "bk-sdm-small": {"block_out_channels": (8, 16, 16, 16), "attention_head_dim": 4},
    "bk-sdm-tiny": {"block_out_channels": (8, 16, 16), "attention_head_dim": 4},
}
SMALL = {name: PUBLISHED[name] | _SMALL | _CHANGES[name] for name in PUBLISHED}
for _config in SMALL.values():
    if "addition_embed_type" not in _config:
        del _config["addition_time_embed_dim"], _config["projection_class_embeddings_input_dim"]

# The smallest net with everything: nested depths, a middle block of one resnet, sizes.
SMALLEST = SMALL["ssd-1b"] | {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": (1, 2),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [0, [1]],
    "reverse_transformer_layers_per_block": [[2, 1], 1],
}

# Of the published pipelines, in diffusers' words.
PUBLISHED_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}

# For the compiler, which takes most of the time here: these cut it to a third.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}

Inputs = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray] | None]


def inputs(config: dict[str, Any], *, batch: int = 2, size: int = 8) -> Inputs:
    """What a UNet is called with: sample, times, text, and sizes where it takes them."""
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((batch, 4, size, size), np.float32)
    times = np.linspace(3, 977, batch).astype(np.int32)
    text = rng.standard_normal((batch, 5, config["cross_attention_dim"]), np.float32)
    if "addition_embed_type" not in config:
        return sample, times, text, None
    numbers = 5 if config["projection_class_embeddings_input_dim"] == 36 else 6  # the refiner's
    added = {
        "text_embeds": rng.standard_normal((batch, 16), np.float32),
        "time_ids": rng.uniform(0, 1024, (batch, numbers)).astype(np.float32),
    }
    return sample, times, text, added


def torch_net(config: dict[str, Any], *, seed: int = 0) -> UNet2DConditionModel:
    """A diffusers UNet in which no tensor is left at zero or one, as norms and biases are made."""
    net = builders.build_unet(config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return net


def predicted_by_torch(net: UNet2DConditionModel, given: Inputs) -> np.ndarray:
    """The prediction of diffusers' own net."""
    sample, times, text, added = given
    tensors = [torch.from_numpy(array) for array in (sample, times, text)]
    extra = None if added is None else {key: torch.from_numpy(a) for key, a in added.items()}
    with torch.no_grad():
        return net(*tensors, added_cond_kwargs=extra).sample.numpy()


@cache
def _compiled(net: Any) -> Any:
    return jax.jit(
        lambda params, *given: net.apply({"params": params}, *given),
        compiler_options=QUICK,
    )


def predicted(net: Any, params: Any, given: Inputs) -> np.ndarray:
    """The prediction of our net, compiled once for each net."""
    return np.asarray(_compiled(net)(params, *given))


def save(net: UNet2DConditionModel, folder: Path) -> Path:
    """The UNet's own folder, as diffusers writes it."""
    net.save_pretrained(folder)
    return folder
