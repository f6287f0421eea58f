"""What a CLIP text encoder computes, read off the `config.json` that transformers writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from prolora_jax.errors import BaseModelError, Refusal

Activation = Literal["quick_gelu", "gelu"]

# Fields that would change what is computed, and the values that leave it as it is here; null counts
# as unset. Everything else that transformers writes is about training, dropout or generation.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("clip_text_model",),
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": (),
    "text_config": (),
}


@dataclass(frozen=True)
class ClipConfig:
    """A CLIP text encoder: sizes as `config.json` has them, transformers' defaults.

    Attributes:
        vocab_size: tokens.
        hidden_size: width of the embeddings.
        intermediate_size: width between the two layers of each feed-forward net.
        num_hidden_layers: number of layers.
        num_attention_heads: heads of each; a divisor of the width.
        max_position_embeddings: tokens of a prompt, with those of its beginning and end.
        hidden_act: `quick_gelu` (`x sigmoid(1.702 x)`) of OpenAI's, `gelu` of OpenCLIP's encoders.
        layer_norm_eps: what the layer norms add to the variance.
        projection_dim: width of the projected summary, where an encoder has one.
        eos_token_id: which token ends a prompt; 2, which old files say, stands for the highest.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    eos_token_id: int = 49407


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "projection_dim",
)


def clip_config(raw: Mapping[str, Any], *, origin: str = "config.json") -> ClipConfig:
    """The text encoder that a configuration of transformers describes.

    Args:
        raw: the content of a `config.json`; what is missing has transformers' default.
        origin: what to call it in messages.

    Returns:
        The same as our own record.

    Raises:
        BaseModelError: a field has a value that is not implemented, or two contradict each other.
    """
    given = {name: value for name, value in raw.items() if value is not None}
    for name, allowed in _FIXED.items():
        if name in given and given[name] not in allowed:
            _refuse(origin, name, given[name], " or ".join(map(repr, allowed)) or "null")
    for name in _SIZES:
        if name in given and not (_is_whole(given[name]) and given[name] > 0):
            _refuse(origin, name, given[name], "a positive number")
    known = {name: given[name] for name in ClipConfig.__dataclass_fields__ if name in given}
    eps, eos, act = (known.get(n) for n in ("layer_norm_eps", "eos_token_id", "hidden_act"))
    if act is not None and act not in get_args(Activation):
        _refuse(origin, "hidden_act", act, "'quick_gelu' or 'gelu'")
    if eps is not None and not (isinstance(eps, float | int) and 0 < eps < 1):
        _refuse(origin, "layer_norm_eps", eps, "a number between 0 and 1")
    if eos is not None and not _is_whole(eos):
        _refuse(origin, "eos_token_id", eos, "one whole number")
    config = ClipConfig(**known)
    if config.hidden_size % config.num_attention_heads:
        expected = f"a divisor of hidden_size, {config.hidden_size}"
        _refuse(origin, "num_attention_heads", config.num_attention_heads, expected)
    return config


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(origin: str, name: str, found: Any, expected: str) -> NoReturn:
    raise BaseModelError(
        f"{origin}: field {name} is {found!r}; expected {expected}; only CLIP's text encoders are "
        f"supported, as the pipelines of the Stable Diffusion family have them",
        code=Refusal.UNSUPPORTED_CONFIG,
    )
