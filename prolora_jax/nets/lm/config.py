"""What a language model computes, read off the `config.json` that transformers writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.nets.lm.rope import Rope, rope_from

Activation = Literal["silu", "gelu_pytorch_tanh"]
Norms = Literal["before", "around", "after"]
QkNorm = Literal["none", "head", "projection"]


@dataclass(frozen=True)
class LmConfig:
    """A decoder of Llama's kind: sizes as `config.json` has them.

    Attributes:
        vocab_size: tokens.
        hidden_size: width of the residual stream.
        intermediate_size: width inside of the feed-forward nets.
        num_hidden_layers: number of layers.
        num_attention_heads: heads of the queries.
        num_key_value_heads: heads of keys and values; a divisor of the former.
        head_dim: width of a head.
        rms_norm_eps: what the norms add to the mean square.
        rope: rotary positions.
        hidden_act: of the gate of the feed-forward nets.
        tie_word_embeddings: whether the head is the embedding.
        qkv_bias: whether queries, keys and values have biases.
        o_bias: whether the output of the attention has one.
        mlp_bias: whether the feed-forward nets have some.
        qk_norm: of queries and keys: none, over each head (Qwen 3), or over the whole projection
            (OLMo 2).
        norms: before attention and feed-forward net (Llama), before and behind both (Gemma 2), or
            behind both (OLMo 2).
        unit_norms: whether norms multiply by `1 + weight` (Gemma).
        scaled_embedding: whether embeddings are multiplied by the root of their width (Gemma).
        query_scale: what scores are multiplied by.
        attention_cap: `c` of `c tanh(score / c)`; none where None.
        logit_cap: the same for logits.
        window: tokens that windowed layers look back on; None where there are none.
        windowed: which layers have that window; none or one entry a layer.
        bos_token_id: what a text begins with; None where nothing does.
        eos_token_ids: tokens that end a text.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    hidden_act: Activation = "silu"
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: QkNorm = "none"
    norms: Norms = "before"
    unit_norms: bool = False
    scaled_embedding: bool = False
    query_scale: float = 1.0
    attention_cap: float | None = None
    logit_cap: float | None = None
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


# What a kind of model does otherwise than Llama.
_KINDS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "olmo2": {"qk_norm": "projection", "norms": "after"},
    "gemma2": {
        "norms": "around",
        "unit_norms": True,
        "scaled_embedding": True,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
}
# Fields that would change what is computed, and the values that leave it as it is here.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "pretraining_tp": (1,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (),
    "use_bidirectional_attention": (False,),
}
_LARGEST = 2**20


def lm_from_transformers(raw: Mapping[str, Any], *, origin: str) -> LmConfig:
    """What transformers' configuration says.

    Args:
        raw: content of a `config.json`.
        origin: the file, for messages.

    Returns:
        The configuration.

    Raises:
        BaseModelError: it is of a kind that is not computed here, or says something unknown.
    """
    kind = str(raw.get("model_type"))
    if kind not in _KINDS:
        _refuse(origin, f"model_type {kind!r}", " | ".join(_KINDS))
    for name, allowed in _FIXED.items():
        value = raw.get(name)
        if value is not None and value not in allowed:
            _refuse(origin, f"{name} {value!r}", f"{allowed[0]!r}" if allowed else "none")
    told = dict(_KINDS[kind])
    heads, width = _size(raw, "num_attention_heads", origin), _size(raw, "hidden_size", origin)
    head_dim = _size(raw, "head_dim", origin, width // heads)
    layers = _size(raw, "num_hidden_layers", origin)
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or "silu"
    if kind == "gemma2":
        told["query_scale"] = float(raw.get("query_pre_attn_scalar", 256)) ** -0.5
        told["attention_cap"] = raw.get("attn_logit_softcapping")
        told["logit_cap"] = raw.get("final_logit_softcapping")
    else:
        told["query_scale"] = head_dim**-0.5
        told["tie_word_embeddings"] = bool(raw.get("tie_word_embeddings", False))
    if kind != "qwen2" and raw.get("attention_bias"):
        told |= {"qkv_bias": True, "o_bias": True}
    if activation not in get_args(Activation):
        _refuse(origin, f"hidden_act {activation!r}", " | ".join(get_args(Activation)))
    kv_heads = _size(raw, "num_key_value_heads", origin, heads)
    if heads % kv_heads:
        _refuse(origin, f"{kv_heads} heads of keys for {heads}", "a divisor")
    window, windowed = _windows(raw, kind, layers)
    return LmConfig(
        vocab_size=_size(raw, "vocab_size", origin),
        hidden_size=width,
        intermediate_size=_size(raw, "intermediate_size", origin),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=rope_from(raw, origin),
        **(told | {"hidden_act": activation, "mlp_bias": bool(raw.get("mlp_bias"))}),
        window=window,
        windowed=windowed,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=_tokens(raw.get("eos_token_id")),
    )


def _windows(raw: Mapping[str, Any], kind: str, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """How far windowed layers look back, and which layers are windowed."""
    window = raw.get("sliding_window")
    unused = kind in {"qwen2", "qwen3"} and not raw.get("use_sliding_window")
    if window is None or unused or kind == "llama":
        return None, ()
    types = raw.get("layer_types")
    if types is not None:
        return int(window), tuple(name == "sliding_attention" for name in types)
    if kind == "gemma2":  # every second layer, from the first
        return int(window), tuple(i % 2 == 0 for i in range(layers))
    if kind in {"qwen2", "qwen3"}:
        first = int(raw.get("max_window_layers", layers))
        return int(window), tuple(i >= first for i in range(layers))
    return int(window), (True,) * layers


def _size(raw: Mapping[str, Any], name: str, origin: str, default: int | None = None) -> int:
    value = raw.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST:
        _refuse(origin, f"{name} {value!r}", f"a whole number up to {_LARGEST}")
    return value


def _tokens(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _refuse(origin: str, found: str, expected: str) -> NoReturn:
    raise BaseModelError(
        f"{origin}: found {found}; expected {expected}, which are computed here; migrate without "
        f"running the model (every method but refine does)",
        code=Refusal.UNSUPPORTED_CONFIG,
    )
