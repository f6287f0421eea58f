"""Language models as folders that transformers would load, from parameters of the Flax net."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prolora_jax.architectures.flax_trees import leaves
from prolora_jax.evaluation.laboratory.lm.recipe import LmPacking
from prolora_jax.io.containers.tensors import write_tensors
from prolora_jax.io.documents import write_json

BLOCK, Q4_BLOCK = 64, 32
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
    + [-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0]
    + [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    + [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    np.float32,
)
"""Quantiles of a normal distribution (Dettmers et al., QLoRA, arXiv 2305.14314, appendix E)."""


def write_model(
    folder: Path, config: Mapping[str, Any], params: Any, packing: LmPacking = "none"
) -> None:
    """A model in float32, or with its layers' weights packed.

    Args:
        folder: where to.
        config: what its `config.json` says.
        params: of `CausalLm`.
        packing: of the linear layers; `q4` rounds them to Q4_0's grid, and stores floats.
    """
    tensors: dict[str, np.ndarray] = {}
    for key, leaf in leaves(params):
        *layer, kind = key.split("/")
        name, array = ".".join(layer), np.asarray(leaf)
        if kind == "kernel":
            tensors |= packed(f"{name}.weight", np.ascontiguousarray(array.T), packing)
        else:
            tensors[f"{name}.{'weight' if kind == 'embedding' else kind}"] = array
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", dict(config))


def packed(key: str, weight: np.ndarray, packing: LmPacking) -> dict[str, np.ndarray]:
    """What a file holds of one weight.

    Args:
        key: of the weight.
        weight: `(out, in)`, float32.
        packing: see `write_model`.
    """
    if packing == "nf4":
        return _nf4(key, weight)
    if packing == "int8":
        scale = np.abs(weight).max(axis=1)
        numbers = np.round(weight * (127 / np.maximum(scale, 1e-12))[:, None]).astype(np.int8)
        return {key: numbers, f"{key.removesuffix('weight')}SCB": scale.astype(np.float32)}
    return {key: _q4(weight) if packing == "q4" else weight}


def _nf4(key: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """As bitsandbytes stores it: two numbers a byte, the largest of each block in float32."""
    blocks = weight.reshape(-1, BLOCK)
    largest = np.abs(blocks).max(axis=1)
    between = (NF4[1:] + NF4[:-1]) / 2
    places = np.searchsorted(between, blocks / np.maximum(largest, 1e-12)[:, None])
    pairs = places.astype(np.uint8).reshape(-1, 2)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32", "shape": weight.shape}
    said = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {
        key: (pairs[:, :1] << 4) | pairs[:, 1:],
        f"{key}.absmax": largest.astype(np.float32),
        f"{key}.quant_map": NF4,
        f"{key}.quant_state.bitsandbytes__nf4": said,
    }


def _q4(weight: np.ndarray) -> np.ndarray:
    """Each block of 32 as 16 steps; the largest number, with its sign, is -8 of them (GGML)."""
    blocks = weight.reshape(-1, Q4_BLOCK)
    places = np.abs(blocks).argmax(axis=1)[:, None]
    step = np.take_along_axis(blocks, places, axis=1) / -8
    counted = np.divide(blocks, step, out=np.zeros_like(blocks), where=step != 0)
    rounded = np.clip(np.floor(counted + 8.5), 0, 15) - 8
    stored = step.astype(np.float16).astype(np.float32)
    return (rounded * stored).reshape(weight.shape).astype(np.float32)
