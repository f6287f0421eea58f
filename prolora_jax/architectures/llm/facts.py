"""What a language model's configuration says and its tensors do not: how many heads there are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from prolora_jax.architectures.llm.names import ALONE, SEEING

# Models of which transformers divides `hidden_size` by the heads where no `head_dim` is said.
_DIVIDED = frozenset({"llama", "mistral", "qwen2"})
# What GGUF files call an architecture, by what transformers calls a model.
_GGUF = {
    **dict.fromkeys(("llama", "mistral"), "llama"),
    **{name: name for name in ("qwen2", "qwen3", "gemma2", "phi3", "gpt2")},
    **dict.fromkeys(("gemma3", "gemma3_text"), "gemma3"),
}


# Models that also see whose layers stand elsewhere than in most, and those that do not say of which
# of their fields the language model's are.
_LEVELS = {
    "llama4": "language_model.model.",
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), "model.text_model."),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), SEEING),
}


class LmFacts(NamedTuple):
    """Of one language model.

    Attributes:
        architecture: what GGUF files call it; None of one that they have no table of here.
        heads: of queries; 0 where nothing says it, as LLaVA 1.5's file does not.
        kv_heads: of keys and values; 0 where nothing says it.
        tied: whether the embedding is the head, too.
        family: what its own file calls it, `qwen3`, `gemma3_text`.
        rotation: what transformers calls the scaling of its rotary embedding, `llama3`; None where
            nothing is said.
        level: what stands before its layers in transformers' own modules (`names.name_inside`).
        layers: of a model that is put together of layers, which one each of its own was
            (`stacked.layers_of_recipe`); None where nothing says it.
        head_sizes: channels of a head, by what says so; none where nothing does.
    """

    architecture: str | None
    heads: int
    kv_heads: int
    tied: bool
    family: str
    rotation: str | None = None
    level: str = ALONE
    layers: tuple[int, ...] | None = None
    head_sizes: tuple[tuple[str, int], ...] = ()


def facts_of_config(config: Mapping[str, Any]) -> LmFacts | None:
    """What transformers' `config.json` says; None where it says neither heads nor a kind of model.

    Args:
        config: the document; of a model that also sees, its language model stands inside of it.
    """
    inner = config.get("text_config")
    fields = {**config, **inner} if isinstance(inner, Mapping) else config
    heads = fields.get("num_attention_heads", fields.get("n_head"))
    kv_heads = fields.get("num_key_value_heads")
    kv_heads = heads if kv_heads is None else kv_heads
    if type(heads) is not int or type(kv_heads) is not int or min(heads, kv_heads) < 1:
        if not isinstance(config.get("model_type"), str):
            return None
        heads = kv_heads = 0  # where its layers stand is known all the same
    kind = str(fields.get("model_type"))
    # Transformers' own default, where a file does not say it.
    tied = fields.get("tie_word_embeddings", kind.startswith(("gemma", "gpt2")))
    outer = str(config.get("model_type"))
    level = _LEVELS.get(outer, SEEING if isinstance(inner, Mapping) else ALONE)
    told = _GGUF.get(kind), heads, kv_heads, bool(tied), kind, _rotation(fields), level
    divided = kind in _DIVIDED and heads > 0
    sizes = _sizes(fields, "head_dim", "hidden_size", heads, divided=divided)
    return LmFacts(*told, head_sizes=sizes)


def _sizes(
    fields: Mapping[str, Any], own: str, width: str, heads: int, *, divided: bool
) -> tuple[tuple[str, int], ...]:
    """Channels of a head: what a field says, or, where it does not, the width over the heads."""
    said, whole = fields.get(own), fields.get(width)
    name = own.rpartition(".")[2]
    if type(said) is int:
        return ((name, said),)
    if said is not None or not divided or type(whole) is not int:
        return ()
    return ((f"{width.rpartition('.')[2]} over heads, without {name}", whole // heads),)


def _rotation(fields: Mapping[str, Any]) -> str | None:
    for name in ("rope_parameters", "rope_scaling"):
        said = fields.get(name)
        if isinstance(said, Mapping):
            kind = said.get("rope_type", said.get("type"))
            return kind if isinstance(kind, str) else None
    return None


def facts_of_gguf(values: Mapping[str, Any], names: Mapping[str, Any]) -> LmFacts | None:
    """What the header of a GGUF file says; None where it says no number of heads.

    Args:
        values: of the header.
        names: of the tensors.
    """
    architecture = str(values.get("general.architecture"))
    heads = values.get(f"{architecture}.attention.head_count")
    kv_heads = values.get(f"{architecture}.attention.head_count_kv", heads)
    if type(heads) is not int or type(kv_heads) is not int or min(heads, kv_heads) < 1:
        return None
    return LmFacts(
        architecture,
        heads,
        kv_heads,
        "output.weight" not in names,
        architecture,
        head_sizes=gguf_head_sizes(values),
    )


def gguf_head_sizes(values: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Channels of a head of queries or keys in a GGUF file, by what in its header says so.

    Args:
        values: of the header.
    """
    architecture = str(values.get("general.architecture"))
    heads = values.get(f"{architecture}.attention.head_count")
    own, width = f"{architecture}.attention.key_length", f"{architecture}.embedding_length"
    if type(heads) is not int or heads < 1:  # one for each layer
        return _sizes(values, own, width, 1, divided=False)
    return _sizes(values, own, width, heads, divided=True)
