"""A tiny Mistral pruned in width, and in depth: which rows and columns of another it has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from language_models import FAMILIES, from_layer
from transformers import MistralConfig, MistralForCausalLM

WIDTH, FFN = 24, 40
_CHOSEN = np.random.default_rng(7)
STREAM = np.sort(_CHOSEN.permutation(32)[:WIDTH])
HIDDEN = [np.sort(_CHOSEN.permutation(48)[:FFN]) for _ in range(5)]
HEADS = [1, 1, 0, 1, 0]  # of keys, one of two, by layer of the source
Indices = tuple[np.ndarray, np.ndarray]


def indices(name: str, shape: tuple[int, ...], *, stream: bool = True) -> Indices:
    """Rows and columns of a source's weight that the target has."""
    rows, columns = (np.arange(size) for size in shape)
    layer = int(name.split(".")[2]) if ".layers." in name else 0
    if "gate_proj" in name or "up_proj" in name:
        rows = HIDDEN[layer]
    elif "down_proj" in name:
        columns = HIDDEN[layer]
    if not stream:
        return rows, columns
    queries, keys = (np.arange(n) + n * HEADS[layer] for n in (24, 12))
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys}.get(name.split(".")[-2], rows)
    if "o_proj" in name:
        columns = queries
    if "o_proj" in name or "down_proj" in name:
        return STREAM, columns
    return rows, STREAM


def sliced(
    weights: Mapping[str, torch.Tensor], kept: tuple[int, ...] = (0, 1), *, stream: bool = True
) -> dict[str, torch.Tensor]:
    """Weights of the target by its names.

    Args:
        weights: of the source.
        kept: layers of the source that the target has.
        stream: whether all widths are pruned, or the hidden layer's alone.
    """
    found, names = {}, [name for name in weights if ".layers." not in name]
    inner = {name.split(".", 3)[3] for name in weights if ".layers." in name}
    names += [f"model.layers.{j}.{name}" for j in range(len(kept)) for name in sorted(inner)]
    for name in names:
        own = from_layer(name, kept)
        weight = weights[own]
        if weight.ndim == 2:
            rows, columns = indices(own, tuple(weight.shape), stream=stream)
            found[name] = weight[rows][:, columns].clone()
        else:
            found[name] = weight[STREAM].clone() if stream else weight.clone()
    return found


def save_pruned(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    depth: int,
    *,
    stream: bool = True,
    **changes: Any,
) -> Any:
    """A model with sliced weights, saved; returns it."""
    sizes: dict[str, Any] = {**FAMILIES["mistral"].sizes, "intermediate_size": FFN, **changes}
    if stream:
        sizes |= {"hidden_size": WIDTH, "num_attention_heads": 2, "num_key_value_heads": 1}
    net = MistralForCausalLM(MistralConfig(**sizes, num_hidden_layers=depth)).eval()
    net.load_state_dict(weights)
    net.save_pretrained(folder)
    return net
