"""Names of a language model's tensors, whatever a program has put before them.

The names are those of transformers' causal models: `model.layers.0.self_attn.q_proj` of Llama and
of most, `transformer.h.0.attn.c_attn` of GPT-2, `gpt_neox.layers.0.attention.dense` of NeoX. A
model without its head is saved without the first level, one that also sees has a level more. Of
BERT, an encoder that mostly comes without a head, the names are those without:
`encoder.layer.0.attention.self.query`.
"""

from prolora_jax.architectures.stack import Stack

LM = "lm."
"""Component of the paths of a language model's modules: `lm.model.layers.0.mlp.up_proj`."""

# Qwen 3 Next and 3.5 have layers of two kinds in one stack; their feed-forward parts are alike.
_KINDS = ("self_attn.", "linear_attn.")
LLM_STACKS = (
    Stack("model.layers", "layers", deep=True, apart=_KINDS),
    Stack("transformer.h", "layers", deep=True),
    Stack("gpt_neox.layers", "layers", deep=True),
    Stack("encoder.layer", "layers", deep=True),
)

# What stands before the model's own names, longest first: models that also see, and their writers.
_AROUND = (
    "model.language_model.model.",
    "language_model.model.",
    "model.language_model.",
    "language_model.",
    "model.text_model.",
)
_BERT, _OF_BERT = "bert.", ("encoder.layer.", "pooler.dense.")
# First levels of a model that was saved without its head, and the level that they lack.
_WITHOUT_HEAD = {
    "layers.": "model.",
    "embed_tokens.": "model.",
    "embed_tokens_per_layer.": "model.",
    "per_layer_model_projection.": "model.",
    "norm.": "model.",
    "h.": "transformer.",
    "wte.": "transformer.",
    "wpe.": "transformer.",
    "ln_f.": "transformer.",
    "embed_in.": "gpt_neox.",
    "final_layer_norm.": "gpt_neox.",
}
_ROOTS = ("model.layers.", "transformer.h.", "gpt_neox.layers.", "lm_head.", "embed_out.") + (
    *_OF_BERT,
    "model.embed_tokens.",
    "model.embed_tokens_per_layer.",
    "model.per_layer_model_projection.",
    "transformer.wte.",
    "gpt_neox.embed_in.",
    "model.norm.",
    "transformer.ln_f.",
    "transformer.wpe.",
    "gpt_neox.final_layer_norm.",
)
_LAYERS = tuple(f"{stack.name}." for stack in LLM_STACKS)
_MODEL = "model."
_FIRST = _MODEL, "transformer."
ALONE, SEEING = _MODEL, "model.language_model."
"""Levels before the layers, in transformers' own modules: of a causal model, and of most models
that also see, whatever their files call them."""


def lm_name(key: str) -> str | None:
    """Name of a tensor or module as a causal model of transformers has it; None of others.

    Args:
        key: `layers.0.mlp.up_proj.weight`, `language_model.model.layers.0.mlp.up_proj`, ...

    Returns:
        `model.layers.0.mlp.up_proj.weight`, without a component.
    """
    for prefix in _AROUND:
        if key.startswith(prefix):
            inner = key.removeprefix(prefix)
            # The head of a model that also sees stands beside the model, or inside of it.
            key = inner if inner.startswith(("lm_head.", "model.")) else f"model.{inner}"
            break
    if key.removeprefix(_BERT).startswith(_OF_BERT):
        key = key.removeprefix(_BERT)
    for first, level in _WITHOUT_HEAD.items():
        if key.startswith(first):
            key = level + key
    return key if f"{key}.".startswith(_ROOTS) else None


def in_layer(name: str) -> bool:
    """Whether a tensor or module, by its name here, is in one of the numbered layers."""
    for layers in _LAYERS:
        number, _, rest = name.removeprefix(layers).partition(".")
        if name.startswith(layers) and number.isdecimal() and rest:
            return True
    return False


def names_around(name: str) -> tuple[str, ...]:
    """What a module or tensor of `lm_name` may be called in models that also see."""
    if not name.startswith(_MODEL):
        return (f"language_model.{name}",)
    return tuple(prefix + name.removeprefix(_MODEL) for prefix in _AROUND)


def name_inside(name: str, level: str) -> str:
    """What transformers' own modules call a module or tensor of `lm_name`.

    Args:
        name: `model.layers.0.mlp.up_proj`, `lm_head`.
        level: that the layers stand in: `ALONE`, `SEEING`, or another model's; "" of a model
            that was loaded without its head.

    Returns:
        `model.language_model.layers.0.mlp.up_proj` for `SEEING`; a head stands beside that level.
    """
    if not level:
        return name.partition(".")[2] if name.startswith(_FIRST) else name
    if name.startswith(_MODEL):
        return level + name.removeprefix(_MODEL)
    # Where a whole causal model stands inside of another, its head does, too.
    return level.removesuffix(_MODEL) + name if f".{level}".endswith(f".{_MODEL}") else name


def without_head(level: str) -> str:
    """The level that layers stand in where the same model is loaded without its head."""
    return level.removeprefix(_MODEL)
