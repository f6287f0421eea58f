"""Which tensors of a language model are layers, and which are stored the other way round.

GPT-2 stores its weights `(in, out)` (transformers' Conv1D); that cannot be told by shape, since
one of them is square. What is fused in the model stays one module: `qkv_proj` and `gate_up_proj` of
Phi, `c_attn` of GPT-2, `query_key_value` of NeoX, as trainers of adapters have them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from prolora_jax.architectures.llm.names import LM, in_layer, lm_name

_WEIGHT = ".weight"
# A layer that language models have and other stacks of `layers` do not.
_SIGNS = (
    *("self_attn.q_proj", "self_attn.qkv_proj", "attn.c_attn", "attention.query_key_value"),
    "attention.self.query",
)
_STORED_IN_OUT = ("attn.c_attn", "attn.c_proj", "crossattention.c_attn", "mlp.c_fc", "mlp.c_proj")
_EMBEDDINGS = ("model.embed_tokens", "transformer.wte", "gpt_neox.embed_in")
# The head by name, and the embedding that is the head of a model that ties the two.
_HEADS = {"lm_head": _EMBEDDINGS[:2], "embed_out": _EMBEDDINGS[2:], "pooler.dense": ()}


class LmLayer(NamedTuple):
    """A layer of a language model in a file.

    Attributes:
        path: with component, `lm.model.layers.0.self_attn.q_proj`.
        key: of its weight in the file.
        shape: of its weight, `(out, in)`.
        transposed: whether the file has it as `(in, out)`.
    """

    path: str
    key: str
    shape: tuple[int, ...]
    transposed: bool


def lm_layers(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[LmLayer]:
    """Every linear layer of the language model in a file, its head, and its embedding.

    Rows of an embedding are looked up, not multiplied with; what an adapter adds to them is an
    update of the matrix `(vocabulary, width)` all the same.

    Args:
        shapes: shape by key, of all tensors of the file.

    Yields:
        The layers; none where no attention of a language model is among the tensors.
    """
    names = {name: key for key in shapes if (name := _weight_name(key)) is not None}
    if not any(in_layer(name) and name.endswith(_SIGNS) for name in names):
        return
    for name, key in names.items():
        if in_layer(name) and len(shapes[key]) == 2:
            turned = stored_in_out(LM + name)
            shape = shapes[key][::-1] if turned else shapes[key]
            yield LmLayer(LM + name, key, shape, turned)
    for head, embeddings in _HEADS.items():
        places = (head, *(e for e in embeddings if e in names))
        stored = next((names[place] for place in places if place in names), None)
        if stored is not None and len(shapes[stored]) == 2:
            yield LmLayer(LM + head, stored, shapes[stored], False)
    for name in _EMBEDDINGS:
        if name in names and len(shapes[names[name]]) == 2:
            yield LmLayer(LM + name, names[name], shapes[names[name]], False)


def stored_in_out(path: str) -> bool:
    """Whether a layer, by its path, is one whose weight its model stores as `(in, out)`."""
    return path.startswith(f"{LM}transformer.") and path.endswith(_STORED_IN_OUT)


def is_embedding(path: str) -> bool:
    """Whether a layer, by its path, is a language model's embedding: a row for each token."""
    return path.startswith(LM) and path.removeprefix(LM) in _EMBEDDINGS


def task_of(paths: Iterable[str]) -> str:
    """What peft calls the task of a model with these layers: it loads the model by that.

    Args:
        paths: of modules, with component.
    """
    encodes = any(path.startswith(f"{LM}encoder.layer.") for path in paths)
    return "FEATURE_EXTRACTION" if encodes else "CAUSAL_LM"


def is_stored_in_out(key: str) -> bool:
    """Whether transformers stores a tensor of this key as `(in, out)`.

    Whoever packs such a layer makes it a linear one first, and stores `(out, in)`.
    """
    name = _weight_name(key)
    return name is not None and in_layer(name) and stored_in_out(LM + name)


def _weight_name(key: str) -> str | None:
    name = lm_name(key) if key.endswith(_WEIGHT) else None
    return None if name is None else name.removesuffix(_WEIGHT)
