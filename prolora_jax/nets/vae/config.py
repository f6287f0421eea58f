"""What a VAE computes, read off the `config.json` that diffusers writes beside its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from prolora_jax.errors import BaseModelError, Refusal

# Fields of which one value is implemented, and other spellings of the same; null counts as unset.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (),
    "latents_std": (),
    "mid_block_add_attention": (True,),
    "shift_factor": (0,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
# What it was trained on, and how to compute: it is always float32 here.
_PASSED_OVER = frozenset({"dtype", "force_upcast", "sample_size"})
_SIZES = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups")


@dataclass(frozen=True)
class VaeConfig:
    """A VAE of the Stable Diffusion family; names and defaults are diffusers'.

    Attributes:
        in_channels: of a picture that is encoded.
        out_channels: of a picture that is decoded.
        latent_channels: of latents.
        block_out_channels: of each resolution, the picture's own first.
        layers_per_block: resnets of each resolution on the way down; one more on the way up.
        norm_num_groups: groups of every group norm.
        scaling_factor: what a UNet sees is latents times this.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215

    @property
    def pixels_per_latent(self) -> int:
        """Height and width in pixels of one latent."""
        return 2 ** (len(self.block_out_channels) - 1)


def vae_config(raw: Mapping[str, Any], *, origin: str = "config.json") -> VaeConfig:
    """The VAE that a diffusers configuration describes.

    Args:
        raw: the content of a `config.json`; what is missing has diffusers' default.
        origin: what to call it in messages.

    Returns:
        The same as our own record.

    Raises:
        BaseModelError: a field has a value that is not implemented, or two contradict each other.
    """
    used = VaeConfig.__dataclass_fields__
    given = {n: v for n, v in raw.items() if v is not None and not n.startswith("_")}
    for name, value in given.items():
        if name in _FIXED and value not in _FIXED[name]:
            _refuse(origin, name, value, " or ".join(map(repr, _FIXED[name])) or "null")
        if name in _SIZES and not _is_size(value):
            _refuse(origin, name, value, "a positive number")
        if name not in {*used, *_FIXED, *_BLOCKS, *_PASSED_OVER}:
            _refuse(origin, name, value, "no such field")
    widths = given.get("block_out_channels", (64,))
    if not isinstance(widths, list | tuple) or not widths or not all(map(_is_size, widths)):
        _refuse(origin, "block_out_channels", widths, "positive numbers")
    for name, kind in _BLOCKS.items():
        types = given.get(name, (kind,))
        if list(types) != [kind] * len(widths):
            _refuse(origin, name, types, f"{kind} for each of {len(widths)} block_out_channels")
    scale = given.get("scaling_factor", VaeConfig.scaling_factor)
    if not isinstance(scale, float | int) or scale <= 0:
        _refuse(origin, "scaling_factor", scale, "a positive number")
    sizes = {name: given[name] for name in _SIZES if name in given}
    config = VaeConfig(block_out_channels=tuple(widths), scaling_factor=float(scale), **sizes)
    if any(width % config.norm_num_groups for width in widths):
        expected = f"a divisor of each of block_out_channels, {widths}"
        _refuse(origin, "norm_num_groups", config.norm_num_groups, expected)
    return config


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _refuse(origin: str, name: str, found: Any, expected: str) -> NoReturn:
    raise BaseModelError(
        f"{origin}: field {name} is {found!r}; expected {expected}; only VAEs of the Stable "
        f"Diffusion family are supported",
        code=Refusal.UNSUPPORTED_CONFIG,
    )
