"""Small language models as files, and their weights replaced by what packs them."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

Tensors = dict[str, torch.Tensor]

Q = "lm.model.layers.0.self_attn.q_proj"
DOWN = "lm.model.layers.1.mlp.down_proj"


@cache
def llama() -> Mapping[str, torch.Tensor]:
    """Every tensor of a Llama of two layers; k and v have half of the heads of q."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    return {key: tensor.detach() for key, tensor in LlamaForCausalLM(config).state_dict().items()}


def linear_weights(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The weights that packers pack: those of linear layers inside the stack, by module."""
    return {
        key.removesuffix(".weight"): tensor
        for key, tensor in tensors.items()
        if "layers" in key and tensor.ndim == 2
    }


def save_packed(file: Path, pack: Callable[[str, torch.Tensor], Tensors], **metadata: str) -> Path:
    """Write the Llama with each linear weight replaced by what `pack` makes of it.

    Args:
        file: where to.
        pack: tensors by full name, from a module's name and weight.
        metadata: header strings.
    """
    tensors: Tensors = dict(llama())
    for name, weight in linear_weights(tensors).items():
        del tensors[f"{name}.weight"]
        tensors |= pack(name, weight)
    save_file(tensors, file, metadata or None)
    return file


def save_plain(file: Path) -> Path:
    """Write the Llama as it is."""
    save_file(dict(llama()), file)
    return file
