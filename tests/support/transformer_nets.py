"""Tiny diffusion transformers by diffusers, and where their authors' models have which rows.

The rows are those of `transformer_rows.json`, which was read off full models: unique numbers were
sent through diffusers' own converters of checkpoints. Only the widths are those of the nets here.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers.loaders import lora_pipeline
from peft import LoraConfig

from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec

Segments = tuple[tuple[int, int], ...]
Tensors = dict[str, np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]


class Kind(NamedTuple):
    """How a family's tiny net is built, and which loader its pipelines have."""

    net: str
    loader: str
    config: dict[str, Any]


KINDS = {
    "flux": Kind(
        "FluxTransformer2DModel",
        "FluxLoraLoaderMixin",
        {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2}
        | {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32}
        | {"pooled_projection_dim": 32, "guidance_embeds": True, "axes_dims_rope": [4, 4, 8]},
    ),
    "sd3": Kind(
        "SD3Transformer2DModel",
        "SD3LoraLoaderMixin",
        {"sample_size": 8, "patch_size": 1, "in_channels": 4, "num_layers": 2, "out_channels": 4}
        | {"attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 32}
        | {"caption_projection_dim": 32, "pooled_projection_dim": 64, "qk_norm": "rms_norm"}
        | {"pos_embed_max_size": 8, "dual_attention_layers": (0,)},
    ),
    "qwen": Kind(
        "QwenImageTransformer2DModel",
        "QwenImageLoraLoaderMixin",
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2}
        | {"attention_head_dim": 16, "num_attention_heads": 3, "joint_attention_dim": 16}
        | {"axes_dims_rope": (8, 4, 4)},
    ),
    "z": Kind(
        "ZImageTransformer2DModel",
        "ZImageLoraLoaderMixin",
        {"all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 32}
        | {"n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16}
        | {"axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32]},
    ),
    "flux2": Kind(
        "Flux2Transformer2DModel",
        "Flux2LoraLoaderMixin",
        {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1}
        | {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16}
        | {"timestep_guidance_channels": 256, "axes_dims_rope": (4, 4, 4, 4)},
    ),
    "wan": Kind(
        "WanTransformer3DModel",
        "WanLoraLoaderMixin",
        {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "ffn_dim": 32}
        | {"num_layers": 2, "rope_max_seq_len": 32},
    ),
    "hv": Kind(
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideoLoraLoaderMixin",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10}
        | {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1}
        | {"guidance_embeds": True, "text_embed_dim": 16, "pooled_projection_dim": 8}
        | {"rope_axes_dim": (2, 4, 4)},
    ),
    "ltx": Kind(
        "LTXVideoTransformer3DModel",
        "LTXVideoLoraLoaderMixin",
        {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 8}
        | {"cross_attention_dim": 16, "num_layers": 1, "caption_channels": 32},
    ),
}
_BLOCK = re.compile(r"(^|\.)(\d+)(?=\.)")


def built(family: str, seed: int = 0, **config: Any) -> Any:
    """A family's tiny net with random weights."""
    torch.manual_seed(seed)
    kind = KINDS[family]
    return getattr(diffusers, kind.net)(**(kind.config | config)).eval()


@cache
def base(family: str) -> BaseModelSpec:
    """The layers of a family's tiny net, as its state dict has them; windows in time are none."""
    weights = {
        f"transformer.{key.removesuffix('.weight')}": tuple(tensor.shape)
        for key, tensor in built(family).state_dict().items()
        if key.endswith(".weight") and tensor.ndim in {2, 4}
    }
    modules = {path: ModuleSpec(path, shape) for path, shape in weights.items()}
    return BaseModelSpec(f"tiny-{family}", modules)


@cache
def shapes(family: str) -> Mapping[str, tuple[int, int]]:
    """Shape by name of every linear layer of a family's tiny net."""
    net = built(family)
    return {
        name: (layer.out_features, layer.in_features)
        for name, layer in net.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


@cache
def row_map(family: str) -> Mapping[str, tuple[str, Segments | None]]:
    """The authors' layer of each linear layer, and its rows there; None for all."""
    if family == "qwen":  # whose authors have diffusers' names
        return {name: (name, None) for name in shapes(family)}
    rows = json.loads((Path(__file__).parent / "transformer_rows.json").read_text())[family]
    last = max(int(found[2]) for name in shapes(family) for found in _BLOCK.finditer(name))
    parts: dict[str, list[tuple[int, str]]] = {}
    found: dict[str, tuple[str, Segments | None]] = {}
    for name, (out, _) in shapes(family).items():
        template, number = _template(name, {canonical for canonical, _, _ in rows})
        entries = [row for row in rows if row[0] == template]
        row = entries[-1] if number == last else entries[0]
        original = row[1].replace("{i}", str(number))
        if row[2] is None:
            found[name] = original, None
        elif str(row[2]).startswith("swapped"):
            found[name] = original, ((out // 2, out), (0, out // 2))
        else:
            parts.setdefault(original, []).append((row[2], name))
    for original, members in parts.items():
        first = 0
        for _, name in sorted(members):
            end = first + shapes(family)[name][0]
            whole = len(members) == 1
            found[name] = original, None if whole else ((first, end),)
            first = end
    return found


def _template(name: str, known: set[str]) -> tuple[str, int]:
    if name in known:
        return name, -1
    for place in _BLOCK.finditer(name):
        template = f"{name[: place.start(2)]}{{i}}{name[place.end(2) :]}"
        if template in known:
            return template, int(place[2])
    raise KeyError(name)


@cache
def original_shapes(family: str) -> Mapping[str, tuple[int, int]]:
    """Shape by name of the authors' layers."""
    found: dict[str, tuple[int, int]] = {}
    for name, (original, segments) in row_map(family).items():
        out, width = shapes(family)[name]
        out = out if segments is None else max(end for _, end in segments)
        found[original] = max(out, found.get(original, (0, 0))[0]), width
    return found


def pairs(layers: Mapping[str, tuple[int, int]], rank: int = 4, seed: int = 3) -> dict[str, Pair]:
    """Random `down` and `up` of each layer, float32."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.standard_normal((rank, width)).astype(np.float32),
            rng.standard_normal((out, rank)).astype(np.float32),
        )
        for name, (out, width) in layers.items()
    }


def cut_by_map(family: str, updates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Dense updates of the authors' layers as those of diffusers' layers."""
    found = {}
    for name, (original, segments) in row_map(family).items():
        if original in updates:
            whole = updates[original]
            pieces = segments or ((0, len(whole)),)
            found[name] = np.concatenate([whole[first:end] for first, end in pieces])
    return found


def dense(given: Mapping[str, Pair], scale: Mapping[str, float] | float = 1.0) -> Tensors:
    """Dense updates of pairs, float64."""
    return {
        name: (scale[name] if isinstance(scale, Mapping) else scale)
        * (up.astype(np.float64) @ down.astype(np.float64))
        for name, (down, up) in given.items()
    }


def written_by_diffusers(family: str, net: Any, **config: Any) -> tuple[Tensors, dict[str, Any]]:
    """A file's tensors and dense updates of random pairs on every linear layer, by diffusers.

    Returns:
        Tensors as diffusers' pipelines write them, without a header; and what fusing them adds.
    """
    fields = {"r": 4, "lora_alpha": 4, "target_modules": [*shapes(family)]} | config
    net.add_adapter(LoraConfig(**fields))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    found = {}
    for key, parameter in net.named_parameters():
        if "lora_" in key:
            found[f"transformer.{key.replace('.default', '')}"] = parameter.detach().numpy().copy()
    return found, fused(net)


def fused(net: Any) -> Tensors:
    """What a net's adapter adds to its weights when diffusers fuses it; the net keeps it not."""
    before = {
        name: layer.base_layer.weight.detach().clone()
        for name, layer in net.named_modules()
        if hasattr(layer, "base_layer")
    }
    net.fuse_lora()
    found = {}
    for name, layer in net.named_modules():
        if name in before:
            found[name] = (layer.base_layer.weight.detach() - before[name]).numpy()
    net.unfuse_lora()
    net.unload_lora()
    return found


def added_in_diffusers(family: str, net: Any, tensors: Tensors) -> Tensors:
    """What an adapter adds to each weight of a net, by the loader of the family's pipelines."""
    loader = getattr(lora_pipeline, KINDS[family].loader)
    given = {key: torch.from_numpy(np.array(array)) for key, array in tensors.items()}
    state = loader.lora_state_dict(given)
    state = state[0] if isinstance(state, tuple) else state
    net.load_lora_adapter(state, prefix="transformer")
    return fused(net)
