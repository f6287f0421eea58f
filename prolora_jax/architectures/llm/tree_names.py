"""What trainers in JAX call the layers of transformers', and how they keep the rows of q and k.

Sources: tunix 0.1.7; of MaxText 0.2.5 `checkpoint_conversion/utils/param_mapping.py`, where the
models are named whose rows are known here.
"""

import re
from typing import Literal

from prolora_jax.architectures.llm.facts import LmFacts

Rows = Literal["pairs", "halves"]
"""Which rows of a head are turned together: neighbours, or those of its halves, as transformers has
them. With `pairs` goes a q that is divided by the square root of a head's size."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TUNIX = {f"self_attn.{name}": f"attn.{name}.w" for name in _ATTENTION} | {
    f"mlp.{name}": f"mlp.{name}.kernel" for name in ("gate_proj", "up_proj", "down_proj")
}
"""Weight in a block of tunix's, by layer of transformers'."""
TUNIX_FAMILIES = frozenset({"llama", "qwen2", "qwen3"})
"""Of transformers' `model_type`."""
MAXTEXT = {
    "self_attn.q_proj": "self_attention.query",
    "self_attn.k_proj": "self_attention.key",
    "self_attn.v_proj": "self_attention.value",
    "self_attn.o_proj": "self_attention.out",
    "mlp.gate_proj": "mlp.wi_0",
    "mlp.up_proj": "mlp.wi_1",
    "mlp.down_proj": "mlp.wo",
}
"""Layer in a block of MaxText's, by layer of transformers'."""
HEADS = {"self_attn.q_proj": "heads", "self_attn.k_proj": "kv_heads"}
"""Layers whose rows are turned by their position, and which field of `LmFacts` has their heads."""
MAXTEXT_MODELS = "llama3.1-*, qwen2.5-*b and qwen3-*b"

_PAIRS = re.compile(r"llama3\.1(-.*)?")
_HALVES = re.compile(r"qwen(2\.5|3)(-[\d.]+b(-a\d+b)?(-.*)?)?")
_ROWS_OF_FAMILY: dict[str, Rows] = {"llama": "pairs", "qwen2": "halves", "qwen3": "halves"}


def rows_of(model_name: object) -> Rows | None:
    """How the rows of q and k lie in a model of MaxText's; None of one that is not known here.

    Args:
        model_name: what its own configuration says.
    """
    if not isinstance(model_name, str):
        return None
    name = model_name.lower()
    if _PAIRS.fullmatch(name):
        return "pairs"
    return "halves" if _HALVES.fullmatch(name) else None


def rows_of_family(family: str) -> Rows | None:
    """How MaxText keeps the rows of q and k of a family of transformers'; None where unknown here.

    Args:
        family: `model_type` of its configuration.
    """
    return _ROWS_OF_FAMILY.get(family)


def maxtext_name(facts: LmFacts) -> str | None:
    """What MaxText calls a model, without its size; None of one that is not known here.

    A Llama is one of its `llama3.1` if its rotation is scaled as Llama 3.1's is: those before are
    called otherwise there, and have other rows.
    """
    if facts.family == "llama":
        return "llama3.1" if facts.rotation == "llama3" else None
    return {"qwen2": "qwen2.5", "qwen3": "qwen3"}.get(facts.family)
