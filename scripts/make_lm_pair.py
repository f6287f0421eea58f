"""Make a pair of language models of real size, and an adapter of the first.

    python scripts/make_lm_pair.py OUT

Writes the layers of an 8B model in bfloat16, a shard a layer (OUT/source, 14 GB), a model of every
second layer of it with noise (OUT/target, 7 GB), and a folder of peft's of rank 16 on all linear
layers of the first (OUT/adapter). Nothing is trained: numbers come from one buffer, read from
another place for each weight, so that no two weights are alike. Embeddings have 1024 rows.
"""

import argparse
import json
import math
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from prolora_jax.io.atomic import write_text
from prolora_jax.io.containers.tensors import write_tensors

HIDDEN, INNER, KEYS, ROWS = 4096, 14336, 1024, 1024
ROLES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
NORMS = ("input_layernorm", "post_attention_layernorm")
NOISE = np.float32(0.1)
BF16 = np.dtype(ml_dtypes.bfloat16)


class Numbers:
    """Normal numbers without end, from a buffer that is longer than any weight.

    Args:
        seed: of NumPy's generator.
    """

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self._buffer = (0.02 * rng.standard_normal(INNER * HIDDEN + 2**22, np.float32)).astype(BF16)

    def weight(self, number: int, shape: tuple[int, ...]) -> np.ndarray:
        """The weight of a number; of another number it is another one."""
        room = self._buffer.size
        start = (number * 7_919_777) % room
        parts = (self._buffer[start:], self._buffer)
        return np.concatenate(parts)[: math.prod(shape)].reshape(shape)


def write_model(folder: Path, layers: list[int], noise: Numbers | None) -> None:
    """A model of some layers of the source.

    Args:
        folder: where to.
        layers: of the source, in their order.
        noise: that is added; None for the source itself.
    """
    given, promised = Numbers(0), {}
    for place, layer in enumerate(layers):
        tensors = {}
        for role, (name, shape) in enumerate(ROLES.items()):
            weight = given.weight(layer * len(ROLES) + role, shape)
            if noise is not None:
                drawn = noise.weight(place * len(ROLES) + role, shape).astype(np.float32)
                weight = (weight.astype(np.float32) + NOISE * drawn).astype(BF16)
            tensors[f"model.layers.{place}.{name}.weight"] = weight
        for name in NORMS:
            tensors[f"model.layers.{place}.{name}.weight"] = np.ones(HIDDEN, BF16)
        shard = f"model-{place + 1:05}-of-{len(layers) + 1:05}.safetensors"
        write_tensors(folder / shard, tensors, {"format": "pt"})
        promised |= dict.fromkeys(tensors, shard)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    rest = {name: given.weight(n, (ROWS, HIDDEN)) for n, name in enumerate(names)}
    rest["model.norm.weight"] = np.ones(HIDDEN, BF16)
    shard = f"model-{len(layers) + 1:05}-of-{len(layers) + 1:05}.safetensors"
    write_tensors(folder / shard, rest, {"format": "pt"})
    index = {"weight_map": promised | dict.fromkeys(rest, shard)}
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=1) + "\n")
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": len(layers),
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": ROWS,
    }
    write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def write_adapter(folder: Path, layers: int, rank: int = 16) -> None:
    """A folder of peft's on all linear layers, with a rank of 16 and random factors."""
    rng, tensors = np.random.default_rng(1), {}
    for layer in range(layers):
        for name, (out, width) in ROLES.items():
            key = f"base_model.model.model.layers.{layer}.{name}.lora_"
            down, up = rng.standard_normal((rank, width)), rng.standard_normal((out, rank))
            tensors[f"{key}A.weight"] = (down / width**0.5).astype(BF16)
            tensors[f"{key}B.weight"] = (0.01 * up).astype(BF16)
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.rpartition(".")[2] for name in ROLES],
    }
    write_text(folder / "adapter_config.json", json.dumps(fields, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Make what the command line asks for.

    Args:
        arguments: of the command line; those of this process if None.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=32, help="of the source")
    chosen = parser.parse_args(arguments)
    started = time.monotonic()
    layers = list(range(chosen.layers))
    write_model(chosen.out / "source", layers, None)
    write_model(chosen.out / "target", layers[::2], Numbers(2))
    write_adapter(chosen.out / "adapter", chosen.layers)
    print(f"made in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
