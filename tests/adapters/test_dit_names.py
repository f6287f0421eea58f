"""Names of a transformer's adapter that leave open what is meant, or that nobody would read."""

import numpy as np
import pytest

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.errors import AdapterRefused

WIDTH = 6
LAYERS = [f"transformer.blocks.{i}.attn1.to_{side}" for i in (0, 1) for side in "qk"]
SPEC = BaseModelSpec("made", {path: ModuleSpec(path, (WIDTH, WIDTH)) for path in LAYERS})


def read(*names: str, flat: bool = False) -> Adapter:
    """Pairs of rank 2 under these names."""
    ends = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
    tensors = {}
    for name in names:
        tensors[f"{name}.{ends[0]}.weight"] = np.full((2, WIDTH), 0.5, np.float32)
        tensors[f"{name}.{ends[1]}.weight"] = np.ones((WIDTH, 2), np.float32)
    return parse(tensors, {}, "made.safetensors")


def test_blocks_of_two_transformers_are_not_those_of_one() -> None:
    given = read("transformer.blocks.0.attn1.to_q", "transformer_2.blocks.1.attn1.to_q")
    with pytest.raises(AdapterRefused, match="of transformer and of transformer_2; expected those"):
        resolve(given, SPEC)
    one = resolve(read("transformer_2.blocks.1.attn1.to_q"), SPEC)
    assert [m.path for m in one.modules] == ["transformer.blocks.1.attn1.to_q"]
