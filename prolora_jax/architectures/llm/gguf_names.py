"""What GGUF files call a language model's tensors, and in which order they have their rows.

llama.cpp rotates pairs of neighbouring rows where transformers rotates a head's first half against
its second. For Llama's own architecture the rows of q and k are stored in that order: row `2i + h`
of a head is row `h · size / 2 + i` of transformers'. Other architectures rotate halves there, too.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from prolora_jax.errors import BaseModelError, Refusal

_BLOCK = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")
_LLAMA = {
    **{f"attn_{one}": f"self_attn.{one}_proj" for one in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{one}": f"mlp.{one}_proj" for one in ("gate", "up", "down")},
}
_LLAMA_OUTSIDE = {"token_embd": "model.embed_tokens", "output": "lm_head"}


class _Names(NamedTuple):
    layers: str
    inside: Mapping[str, str]
    outside: Mapping[str, str]
    heads: Mapping[str, str] = {}
    """Value that says how many heads a tensor has, of those whose rows are in pairs."""


_PLAIN = _Names("model.layers", _LLAMA, _LLAMA_OUTSIDE)
_FAMILIES = {
    "llama": _PLAIN._replace(heads={"attn_q": "head_count", "attn_k": "head_count_kv"}),
    **dict.fromkeys(("qwen2", "qwen3", "gemma2", "gemma3"), _PLAIN),
    "phi3": _PLAIN._replace(
        inside=_LLAMA | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
    ),
    "gpt2": _Names(
        "transformer.h",
        {
            **{"attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj"},
            **{"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        },
        {
            **{"token_embd": "transformer.wte", "position_embd": "transformer.wpe"},
            "output": "lm_head",
        },
    ),
}


class GgufPlace(NamedTuple):
    """Where a GGUF file has a tensor of transformers'.

    Attributes:
        name: of the tensor there.
        heads: how many heads its rows are of, where those of a head are in pairs; else None.
    """

    name: str
    heads: int | None


def gguf_places(
    origin: str, names: Iterable[str], values: Mapping[str, Any]
) -> dict[str, GgufPlace]:
    """The linear layers, embeddings and biases of a GGUF file, by transformers' keys.

    Norms are left out: converters add 1 to those of some models.

    Args:
        origin: what to call the file.
        names: of its tensors.
        values: what its header says.

    Raises:
        BaseModelError: its architecture is not known, or the number of its heads is missing.
    """
    architecture = values.get("general.architecture")
    family = _FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        raise BaseModelError(
            f"{origin}: found general.architecture {architecture!r:.60}; expected one of "
            f"{', '.join(_FAMILIES)}; give the model as safetensors",
            code=Refusal.UNREADABLE_BASE,
        )
    found: dict[str, GgufPlace] = {}
    for name in names:
        block = _BLOCK.fullmatch(name)
        if block is None:
            stem, _, leaf = name.rpartition(".")
            if stem in family.outside:
                found[f"{family.outside[stem]}.{leaf}"] = GgufPlace(name, None)
        elif block[2] in family.inside:
            heads = None
            if block[2] in family.heads:
                value = f"{architecture}.attention.{family.heads[block[2]]}"
                heads = _heads(origin, value, values, int(block[1]), architecture)
            key = f"{family.layers}.{int(block[1])}.{family.inside[block[2]]}.{block[3]}"
            found[key] = GgufPlace(name, heads)
    return found


def _heads(
    origin: str, name: str, values: Mapping[str, Any], layer: int, architecture: str | None
) -> int:
    """A number of heads; without one for keys and values they have those of the queries."""
    said = values.get(name, values.get(f"{architecture}.attention.head_count"))
    if isinstance(said, list):  # one for each layer
        said = said[layer] if layer < len(said) else None
    if type(said) is not int or said < 1:
        raise BaseModelError(
            f"{origin}: found {name} {said!r:.60}; expected a number of heads, without which the "
            f"rows of q and k cannot be put into transformers' order; fetch the file again",
            code=Refusal.UNREADABLE_BASE,
        )
    return said
