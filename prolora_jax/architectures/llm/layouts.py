"""Which tensors of a language model are layers, and which are stored the other way round.

GPT-2 stores its weights `(in, out)` (transformers' Conv1D); that cannot be told by shape, since
one of them is square. Experts may be one tensor for a layer of all of them (`fused.held_experts`):
each is a layer here, a view of its own. What else is fused in the model stays one module:
`qkv_proj` and `gate_up_proj` of Phi, `c_attn` of GPT-2, `query_key_value` of NeoX, as trainers of
adapters have them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from prolora_jax.architectures.llm.fused import held_experts
from prolora_jax.architectures.llm.names import (
    ALONE,
    LM,
    SEEING,
    in_layer,
    lm_name,
    without_head,
)

_WEIGHT = ".weight"
# A layer that language models have and other stacks of `layers` do not.
_SIGNS = (
    *("self_attn.q_proj", "self_attn.qkv_proj", "attn.c_attn", "attention.query_key_value"),
    "attention.self.query",
)
_STORED_IN_OUT = ("attn.c_attn", "attn.c_proj", "crossattention.c_attn", "mlp.c_fc", "mlp.c_proj")
# The head by name, and the embedding that is the head of a model that ties the two. Transformers 5
# calls NeoX's `lm_head`, too.
_HEADS = {
    "lm_head": ("model.embed_tokens", "transformer.wte"),
    "embed_out": ("gpt_neox.embed_in",),
    "pooler.dense": (),
}
_EMBEDDINGS = (*_HEADS["lm_head"], *_HEADS["embed_out"], "model.embed_tokens_per_layer")
# Linear layers beside the numbered ones: Gemma 4's layers have inputs of their own.
_OUTSIDE = ("model.per_layer_model_projection",)
CLASSIFIERS = ("score", "classifier", "qa_outputs")
"""Heads of models that say classes or places, as transformers calls them; most base models have
none, and who trains an adapter begins with a new one."""
_AS_WIDE = ("lm_head", "embed_out", "pooler.dense")


class LmLayer(NamedTuple):
    """A layer of a language model in a file.

    Attributes:
        path: with component, `lm.model.layers.0.self_attn.q_proj`.
        key: of its weight in the file.
        shape: of its weight, `(out, in)`.
        rows: first and end, where they are some of a tensor's; else None.
        transposed: whether the file has it as `(in, out)`.
        expert: which matrix of the tensor; None where that is a matrix.
        step: every which one of the rows it is.
    """

    path: str
    key: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transposed: bool = False
    expert: int | None = None
    step: int = 1


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
    plain = _is_plain({name: shapes[key] for name, key in names.items()})
    for name, key in names.items():
        if in_layer(name) and len(shapes[key]) == 2:
            turned = stored_in_out(LM + name) and not plain
            shape = shapes[key][::-1] if turned else shapes[key]
            yield LmLayer(LM + name, key, shape, transposed=turned)
    yield from _experts(shapes)
    own = [head for head in _HEADS if head in names]
    for head, embeddings in _HEADS.items():
        places = (head,) if own else embeddings
        stored = next((names[place] for place in places if place in names), None)
        if stored is not None and len(shapes[stored]) == 2:
            yield LmLayer(LM + head, stored, shapes[stored])
    for name in (*_EMBEDDINGS, *_OUTSIDE):
        if name in names and len(shapes[names[name]]) == 2:
            yield LmLayer(LM + name, names[name], shapes[names[name]])
    for name in CLASSIFIERS:
        if len(shapes.get(name + _WEIGHT, ())) == 2:
            yield LmLayer(LM + name, name + _WEIGHT, shapes[name + _WEIGHT])


def _is_plain(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a model with GPT-2's names has its weights as `(out, in)`, as StarCoder has.

    Its widening layer tells, which is no square, and the embedding, which is as wide as the stream.
    """
    width = shapes.get("transformer.wte", ())[1:]
    wide = next((shape for name, shape in shapes.items() if name.endswith(".mlp.c_fc")), ())
    return len(wide) == 2 and wide[1:] == width and wide[0] != wide[1]


def _experts(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[LmLayer]:
    """The layers of experts that are one tensor for all of them."""
    keys = {name: key for key in shapes if (name := lm_name(key)) is not None}
    named = {name: shapes[key] for name, key in keys.items()}
    for name, shape in named.items():
        if in_layer(name) and len(shape) == 3:
            for path, part in held_experts(name, named):
                count = len(range(part.first, part.end, part.step))
                out, width = shape[:0:-1] if part.transposed else shape[1:]
                rows = None if count == out else (part.first, part.end)
                where = rows, part.transposed, part.number, part.step
                yield LmLayer(LM + path, keys[name], (count, width), *where)


def stored_in_out(path: str) -> bool:
    """Whether a layer, by its path, is one whose weight its model stores as `(in, out)`."""
    return path.startswith(f"{LM}transformer.") and path.endswith(_STORED_IN_OUT)


def is_embedding(path: str) -> bool:
    """Whether a layer, by its path, is a language model's embedding: a row for each token."""
    return path.startswith(LM) and path.removeprefix(LM) in _EMBEDDINGS


def has_rows_of_tokens(path: str) -> bool:
    """Whether a layer, by its path, has a row for each token: an embedding, or a head."""
    # A pooler is where a model ends, too, and has a row for each of its channels.
    return is_embedding(path) or (path.startswith(LM) and bool(_HEADS.get(path.removeprefix(LM))))


def is_classifier(path: str) -> bool:
    """Whether a layer, by its path, is a language model's head for classes or places."""
    return path.startswith(LM) and path.removeprefix(LM) in CLASSIFIERS


def stream_width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many numbers a head gets for a token; None where no head or pooler says it.

    Args:
        shapes: `(out, in)` by path, of a language model's layers.
    """
    ends = (shapes.get(LM + name) for name in _AS_WIDE)
    return next((shape[1] for shape in ends if shape is not None), None)


def task_of(paths: Iterable[str], level: str = ALONE) -> str:
    """What peft calls the task of a model with these layers: it loads the model by that.

    Args:
        paths: of modules, with component.
        level: that its layers stand in (`names.name_inside`).
    """
    bare = level in {without_head(ALONE), without_head(SEEING)}
    encodes = bare or any(path.startswith(f"{LM}encoder.layer.") for path in paths)
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
