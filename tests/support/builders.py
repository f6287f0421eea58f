"""Tiny models and adapters made by other libraries, and updates computed by them.

One library writes an adapter, another (or this one) computes its update: no library is asked to
confirm itself. Everything is deterministic and built in a second or two.
"""

import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it already speaks while it is imported
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from numpy.testing import assert_allclose
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.table import UNetTensors
from prolora_jax.layout import down_to_matrix, up_to_matrix, weight_to_matrix

_TINY = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "norm_num_groups": 8,
    "layers_per_block": 2,
    "attention_head_dim": (2, 4, 4),
    "cross_attention_dim": 24,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 40,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
# As SDXL, with fewer and narrower layers.
TINY_XL: dict[str, Any] = _TINY | {"transformer_layers_per_block": (1, 1, 3)}
# As SSD-1B to SDXL: fewer layers, a number of its own for each attention, one resnet in the middle.
TINY_SSD: dict[str, Any] = _TINY | {
    "transformer_layers_per_block": [0, [1, 1], [2, 2]],
    "reverse_transformer_layers_per_block": [[2, 2, 3], [1, 1, 1], 1],
    "mid_block_type": "UNetMidBlock2D",
}
# As SD 1.5: no attention in the last down block, projections by 1x1 convolutions.
TINY_SD15: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "layers_per_block": 2,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}

_TABLE = UNetTensors(
    block_out_channels=(16, 32, 32),
    down_depths=(0, 1, 3),
    up_depths=(3, 1, 0),
    mid_depth=3,
    cross_attention_dim=24,
    add_embedding_dim=40,
    linear_projection=True,
)
TINY_XL_TABLE = _TABLE
TINY_SSD_TABLE = UNetTensors(
    block_out_channels=(16, 32, 32),
    down_depths=(0, 1, 2),
    up_depths=((2, 2, 3), 1, 0),
    mid="resnet",
    cross_attention_dim=24,
    add_embedding_dim=40,
    linear_projection=True,
)
TINY_SD15_TABLE = UNetTensors(
    block_out_channels=(16, 32), down_depths=(1, 0), up_depths=(0, 1), cross_attention_dim=24
)

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
# Linear layers, 1x1 and 3x3 convolutions, the time embedding's projections.
EVERYTHING = [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"] + [
    "conv_shortcut",
    "time_emb_proj",
    "downsamplers.0.conv",
]


def build_unet(config: dict[str, Any], *, seed: int = 0) -> UNet2DConditionModel:
    """A diffusers UNet with random weights, float32."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(**config).eval()


def save_folder(
    unet: UNet2DConditionModel, folder: Path, *, shard_size: str = "1GB", variant: str | None = None
) -> Path:
    """Save the UNet where a diffusers pipeline has it; the pipeline's folder is returned."""
    unet.save_pretrained(folder / "unet", max_shard_size=shard_size, variant=variant)
    return folder


def add_lora(
    unet: UNet2DConditionModel,
    *,
    targets: list[str] = ATTENTION,
    rank: int = 4,
    alpha: int = 4,
    seed: int = 1,
    adapter_name: str = "default",
    **options: Any,
) -> dict[str, Any]:
    """Add a peft adapter with random factors; its state dict in peft's keys is returned."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **options)
    with warnings.catch_warnings():  # a second adapter is what is wanted
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        unet.add_adapter(config, adapter_name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if (
                "lora_" in name and f".{adapter_name}." in name
            ):  # peft starts B at zero, which would hide every mistake
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return get_peft_model_state_dict(unet, adapter_name=adapter_name)


def save_by_diffusers(
    unet: UNet2DConditionModel, folder: Path, *, with_config: bool = True
) -> Path:
    """Write the UNet's adapter as diffusers' pipeline does, and return the file."""
    config = unet.peft_config["default"].to_dict() if with_config else None
    if config is not None:  # as diffusers' training scripts do: sets are not JSON
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    StableDiffusionXLLoraLoaderMixin.save_lora_weights(
        folder,
        unet_lora_layers=dict(get_peft_model_state_dict(unet)),
        unet_lora_adapter_metadata=config,
    )
    return folder / "pytorch_lora_weights.safetensors"


def deltas_by_peft(unet: UNet2DConditionModel) -> dict[str, np.ndarray]:
    """The update of each layer as peft computes it, by module path, as a matrix."""
    layers: dict[str, Any] = {
        f"unet.{name}": m for name, m in unet.named_modules() if isinstance(m, LoraLayer)
    }
    return {
        path: weight_to_matrix(layer.get_delta_weight("default").detach().numpy())
        for path, layer in layers.items()
    }


def deltas_by_diffusers(config: dict[str, Any], file: Path) -> dict[str, np.ndarray]:
    """What diffusers adds to each weight when it loads and fuses an adapter file.

    Weights are zero and float64, so that fusing leaves the update alone. By module path, as a
    matrix `(out, in * kh * kw)`, without the layers that stay zero.
    """
    unet = build_unet(config).double()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    read: Any = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
        str(file), unet_config=unet.config, return_lora_metadata=True
    )
    state, alphas, metadata = read
    StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(
        state, network_alphas=alphas, unet=unet, metadata=metadata
    )
    unet.fuse_lora()
    unet.unload_lora()
    deltas = {
        "unet." + name.removesuffix(".weight"): weight_to_matrix(weight.detach().numpy())
        for name, weight in unet.named_parameters()
        if name.endswith(".weight") and weight.ndim > 1
    }
    return {path: delta for path, delta in deltas.items() if delta.any()}


def random_module(
    path: str, spec: BaseModelSpec, *, rank: int = 4, alpha: float | None = None, seed: int = 0
) -> LoraModule:
    """A module of random float32 factors in the shapes of its layer."""
    out, *rest = spec.modules[path].shape
    rng = np.random.default_rng(seed)
    down = rng.standard_normal((rank, *rest)).astype(np.float32)
    up = rng.standard_normal((out, rank, *(1 for _ in rest[1:]))).astype(np.float32)
    return LoraModule(path, down, up, alpha)


def delta(module: LoraModule) -> np.ndarray:
    """The update of a module as a dense float64 matrix, from its definition."""
    up, down = up_to_matrix(module.up), down_to_matrix(module.down)
    return module.scale * up.astype(np.float64) @ down.astype(np.float64)


def assert_deltas(adapter: Adapter, want: dict[str, np.ndarray], rtol: float = 1e-6) -> None:
    """Every module adds what `want` says, to `rtol` of the largest entry (float32 products)."""
    assert {module.path for module in adapter.modules} == set(want)
    for module in adapter.modules:
        atol = rtol * np.abs(want[module.path]).max()
        assert_allclose(delta(module), want[module.path], atol=atol, err_msg=module.path)
