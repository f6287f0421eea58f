"""What an encoder of pictures computes, read off the `config.json` that transformers writes.

Two kinds of vision transformer are known: that of CLIP (OpenAI's, OpenCLIP's, and what is tuned
from them), and DINOv2, with or without registers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from prolora_jax.errors import BaseModelError, Refusal

Kind = Literal["clip", "dinov2"]
Activation = Literal["quick_gelu", "gelu"]

_CLIP, _CLIP_VISION = "clip", "clip_vision_model"
_DINOV2, _WITH_REGISTERS = "dinov2", "dinov2_with_registers"
_TYPES = (_CLIP, _CLIP_VISION, _DINOV2, _WITH_REGISTERS)
_ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class VisionConfig:
    """A vision transformer.

    Attributes:
        kind: CLIP's has a norm before the layers and a projection behind them, DINOv2 scales what
            each layer adds.
        width: width of the hidden states.
        layers: number of transformer layers.
        heads: attention heads of each.
        inner: width inside the feed-forward nets.
        patch: height and width of a patch in pixels.
        size: height and width in pixels of the pictures that the positions are for.
        activation: of the feed-forward nets.
        eps: what norms add to the variance.
        projection: of CLIP: width of the embedding, None for an encoder without one.
        registers: of DINOv2: tokens beside those of the patches.
        masked: of DINOv2: whether there is a token for patches that training has hidden.
        biased: whether queries, keys and values have biases.
    """

    kind: Kind
    width: int
    layers: int
    heads: int
    inner: int
    patch: int
    size: int
    activation: Activation = "gelu"
    eps: float = 1e-5
    projection: int | None = None
    registers: int = 0
    masked: bool = True
    biased: bool = True

    @property
    def grid(self) -> int:
        """Patches in a row, and in a column, of a picture that the positions are for."""
        return self.size // self.patch


def _dinov2(width: int, layers: int, registers: int = 0) -> VisionConfig:
    return VisionConfig(
        "dinov2",
        width=width,
        layers=layers,
        heads=width // 64,
        inner=4 * width,
        patch=14,
        size=518,
        eps=1e-6,
        registers=registers,
    )


PUBLISHED: Mapping[str, VisionConfig] = {
    "clip-vit-l-14": VisionConfig(
        "clip", 1024, 24, 16, 4096, 14, 224, activation="quick_gelu", projection=768
    ),
    "openclip-vit-h-14": VisionConfig("clip", 1280, 32, 16, 5120, 14, 224, projection=1024),
    "dinov2-small": _dinov2(384, 12),
    "dinov2-base": _dinov2(768, 12),
    "dinov2-large": _dinov2(1024, 24),
    "dinov2-small-registers": _dinov2(384, 12, 4),
    "dinov2-base-registers": _dinov2(768, 12, 4),
    "dinov2-large-registers": _dinov2(1024, 24, 4),
}
"""Encoders whose files in their authors' own layouts have no configuration beside them.

Radford et al. 2021 (arXiv 2103.00020), table 20; Cherti et al. 2023 (arXiv 2212.07143); Oquab et
al. 2023 (arXiv 2304.07193), table 17; Darcet et al. 2023 (arXiv 2309.16588).
"""


def vision_config(config: Mapping[str, Any], *, origin: str = "config.json") -> VisionConfig:
    """The vision transformer that a configuration of transformers describes.

    Args:
        config: the content of a `config.json`: of a vision encoder, or of a whole CLIP. What is
            missing has transformers' default.
        origin: what to call it in messages.

    Returns:
        The same as our own record.

    Raises:
        BaseModelError: it is of another kind of net, or a field has a value that is not supported.
    """
    kind, inner = config.get("model_type"), config
    if kind == _CLIP:
        inner = config.get("vision_config")
        if not isinstance(inner, Mapping):
            _refuse(origin, "vision_config", inner, "the configuration of CLIP's vision encoder")
        # Of a whole CLIP the projection's width stands above both towers.
        inner = {**inner, "projection_dim": config.get("projection_dim", 512)}
    elif kind not in _TYPES:
        _refuse(origin, "model_type", kind, " or ".join(_TYPES))
    return _dino(inner, origin) if kind in {_DINOV2, _WITH_REGISTERS} else _clip(inner, origin)


def _clip(config: Mapping[str, Any], origin: str) -> VisionConfig:
    return VisionConfig(
        "clip",
        inner=_number(config, "intermediate_size", 3072, origin),
        eps=float(config.get("layer_norm_eps", 1e-5)),
        activation=_activation(config, "quick_gelu", origin),
        projection=_number(config, "projection_dim", 512, origin),
        **_sizes(config, patch=32, origin=origin),
    )


def _dino(config: Mapping[str, Any], origin: str) -> VisionConfig:
    if config.get("use_swiglu_ffn", False):
        expected = "false; gated feed-forward nets are the giant model's: take small, base or large"
        _refuse(origin, "use_swiglu_ffn", True, expected)
    sizes = _sizes(config, patch=14, origin=origin)
    with_registers = config.get("model_type") == _WITH_REGISTERS
    return VisionConfig(
        "dinov2",
        inner=_number(config, "mlp_ratio", 4, origin) * sizes["width"],
        eps=float(config.get("layer_norm_eps", 1e-6)),
        activation=_activation(config, "gelu", origin),
        registers=_number(config, "num_register_tokens", 4, origin) if with_registers else 0,
        masked=with_registers or bool(config.get("use_mask_token", True)),
        biased=bool(config.get("qkv_bias", True)),
        **sizes,
    )


def _sizes(config: Mapping[str, Any], *, patch: int, origin: str) -> dict[str, Any]:
    """The numbers that both kinds call alike."""
    if config.get("num_channels", 3) != 3:
        _refuse(origin, "num_channels", config["num_channels"], "3, of pictures in colour")
    found = {
        "width": _number(config, "hidden_size", 768, origin),
        "layers": _number(config, "num_hidden_layers", 12, origin),
        "heads": _number(config, "num_attention_heads", 12, origin),
        "patch": _number(config, "patch_size", patch, origin),
        "size": _number(config, "image_size", 224, origin),
    }
    if found["width"] % found["heads"]:
        expected = f"a divisor of hidden_size {found['width']}"
        _refuse(origin, "num_attention_heads", found["heads"], expected)
    if found["size"] < found["patch"]:
        _refuse(origin, "image_size", found["size"], f"at least one patch of {found['patch']}")
    return found


def _number(config: Mapping[str, Any], name: str, default: int, origin: str) -> int:
    """A positive number; a list of two equal ones counts as one."""
    value = config.get(name, default)
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _refuse(origin, name, value, "one positive whole number")
    return value


def _activation(config: Mapping[str, Any], default: Activation, origin: str) -> Activation:
    value = config.get("hidden_act", default)
    if value not in _ACTIVATIONS:
        _refuse(origin, "hidden_act", value, " or ".join(_ACTIVATIONS))
    return value


def _refuse(origin: str, name: str, found: Any, expected: str) -> NoReturn:
    raise BaseModelError(
        f"{origin}: field {name} is {found!r}; expected {expected}; only vision transformers of "
        f"CLIP and DINOv2 are supported",
        code=Refusal.UNSUPPORTED_CONFIG,
    )
