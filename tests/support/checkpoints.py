"""Tiny models in the containers that people have, written without the package's own names.

Every writer is checked by a reader of another library, so that a mistake here does not hide one
there: by diffusers' converters of single files where it is used, and by the converters of the Flax
classes in tests/stock.
"""

import re
from pathlib import Path
from typing import Any

import builders  # noqa: F401 (quietens the others before they are imported)
import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
)

State = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "class_embedding.linear_1.": "label_emb.0.0.",
    "class_embedding.linear_2.": "label_emb.0.2.",
    "class_embedding.weight": "label_emb.weight",
    "time_embedding.cond_proj.": "time_embed.cond_proj.",
}


def ldm_state(unet: UNet2DConditionModel, prefix: str = "model.diffusion_model.") -> State:
    """The UNet's tensors under LDM names, by walking its modules in LDM's order."""
    names = dict(_OUTSIDE)
    inputs, outputs = 1, 0
    blocks: Any = unet.down_blocks
    for i, block in enumerate(blocks):
        attended = hasattr(block, "attentions")
        for j in range(len(block.resnets)):
            names[f"down_blocks.{i}.resnets.{j}."] = f"input_blocks.{inputs}.0."
            if attended:
                names[f"down_blocks.{i}.attentions.{j}."] = f"input_blocks.{inputs}.1."
            inputs += 1
        if block.downsamplers is not None:
            names[f"down_blocks.{i}.downsamplers.0.conv."] = f"input_blocks.{inputs}.0.op."
            inputs += 1
    names["mid_block.attentions.0."] = "middle_block.1."
    names |= {f"mid_block.resnets.{j}.": f"middle_block.{2 * j}." for j in range(2)}
    blocks = unet.up_blocks
    for i, block in enumerate(blocks):
        attended = hasattr(block, "attentions")
        for j in range(len(block.resnets)):
            names[f"up_blocks.{i}.resnets.{j}."] = f"output_blocks.{outputs}.0."
            if attended:
                names[f"up_blocks.{i}.attentions.{j}."] = f"output_blocks.{outputs}.1."
            outputs += 1
        if block.upsamplers is not None:
            sampler = f"output_blocks.{outputs - 1}.{1 + attended}.conv."
            names[f"up_blocks.{i}.upsamplers.0.conv."] = sampler
    return {prefix + _ldm_key(key, names): t for key, t in unet.state_dict().items()}


def _ldm_key(key: str, names: dict[str, str]) -> str:
    (found,) = [start for start in names if key.startswith(start)]
    rest = key.removeprefix(found)
    if ".resnets." in found:
        layer, leaf = rest.rsplit(".", 1)
        rest = f"{_RESNET[layer]}.{leaf}"
    return names[found] + rest


# What diffusers' Flax VAE calls its attention.
_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}


def flax_unet(state: State) -> dict[str, Any]:
    """A UNet's parameters as diffusers' Flax class has them."""
    return _flax({re.sub(r"\.(\d+)", r"_\1", key): tensor for key, tensor in state.items()})


def flax_vae(state: State) -> dict[str, Any]:
    """A VAE's parameters as diffusers' Flax class has them."""
    renamed = {}
    for key, tensor in state.items():
        *places, leaf = re.sub(r"\.(\d+)", r"_\1", key).split(".")
        renamed[".".join((*places[:-1], _VAE_ATTENTION.get(places[-1], places[-1]), leaf))] = tensor
    return _flax(renamed)


def flax_text_encoder(encoder: PreTrainedModel) -> dict[str, Any]:
    """A text encoder's parameters as transformers' Flax classes have them."""
    return _flax(text_state(encoder))


def _flax(state: State) -> dict[str, Any]:
    """A tree of NumPy arrays: kernels are `(in, out)` and `(kh, kw, in, out)`."""
    tree: dict[str, Any] = {}
    for key, tensor in state.items():
        *places, leaf = key.split(".")
        array = tensor.numpy()
        if leaf == "weight" and places[-1].endswith("_embedding"):
            leaf = "embedding"
        elif leaf == "weight" and array.ndim > 1:
            leaf, array = "kernel", array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
        elif leaf == "weight":
            leaf = "scale"
        level = tree
        for place in places:
            level = level.setdefault(place, {})
        level[leaf] = np.ascontiguousarray(array)
    return tree


def text_encoder(*, layers: int = 2, projected: bool = False, seed: int = 0) -> PreTrainedModel:
    """A CLIP text encoder with random weights, width 16."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        projection_dim=16,
        vocab_size=50,
        max_position_embeddings=8,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def text_state(encoder: PreTrainedModel) -> State:
    """A text encoder's tensors in the names that transformers wrote until 5.

    From then on `CLIPTextModel` leaves out the level `text_model`.
    """
    return {
        key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": tensor
        for key, tensor in encoder.state_dict().items()
    }


def open_clip_state(encoder: PreTrainedModel, prefix: str) -> State:
    """The encoder's tensors as OpenCLIP saves them: q, k and v in one tensor, own names."""
    state = text_state(encoder)
    tower = "text_model."
    out = {
        "token_embedding.weight": state[f"{tower}embeddings.token_embedding.weight"],
        "positional_embedding": state[f"{tower}embeddings.position_embedding.weight"],
        "ln_final.weight": state[f"{tower}final_layer_norm.weight"],
        "ln_final.bias": state[f"{tower}final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        out["text_projection"] = state["text_projection.weight"].T.contiguous()
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
    names |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for i in range(encoder.config.num_hidden_layers):
        old, new = f"{tower}encoder.layers.{i}", f"transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            out |= {f"{new}.{n}.{leaf}": state[f"{old}.{o}.{leaf}"] for o, n in names.items()}
            fused = [state[f"{old}.self_attn.{p}_proj.{leaf}"] for p in "qkv"]
            out[f"{new}.attn.in_proj_{leaf}"] = torch.cat(fused)
    return {prefix + key: tensor for key, tensor in out.items()}


def save_single_file(file: Path, *states: State) -> Path:
    """One safetensors file of all these tensors."""
    merged: State = {}
    for state in states:
        merged |= {key: tensor.clone().contiguous() for key, tensor in state.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(merged, file)
    return file
