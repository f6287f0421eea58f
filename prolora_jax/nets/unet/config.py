"""What a UNet computes, read off the `config.json` that diffusers writes beside its weights.

Every field of that file is either used here or must have the one value that the nets of the
Stable Diffusion family have: a field that would change the picture is never passed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from prolora_jax.architectures.unet.table import Depths, UNetTensors
from prolora_jax.errors import BaseModelError, Refusal

_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_MIDDLES = {"UNetMidBlock2DCrossAttn": "attention", "UNetMidBlock2D": "resnet", None: None}
# Fields of which one value is implemented, and other spellings of the same; null counts as unset.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (),
    "downsample_padding": (1,),
    "dropout": (0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (),
    "encoder_hid_dim_type": (),
    "mid_block_only_cross_attention": (False,),
    "mid_block_scale_factor": (1,),
    "num_attention_heads": (),
    "num_class_embeds": (),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (),
    "time_embedding_act_fn": (),
    "time_embedding_dim": (),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (),
}
# Fields that say how to compute, not what: scores and norms are in float32 here in any case.
_PASSED_OVER = frozenset(
    {
        "addition_embed_type_num_heads",
        "dtype",
        "sample_size",
        "split_head_dim",
        "upcast_attention",
        "use_memory_efficient_attention",
    }
)
_USED = frozenset(
    {
        "addition_embed_type",
        "addition_time_embed_dim",
        "attention_head_dim",
        "block_out_channels",
        "cross_attention_dim",
        "down_block_types",
        "flip_sin_to_cos",
        "freq_shift",
        "in_channels",
        "layers_per_block",
        "mid_block_type",
        "norm_eps",
        "norm_num_groups",
        "out_channels",
        "projection_class_embeddings_input_dim",
        "reverse_transformer_layers_per_block",
        "transformer_layers_per_block",
        "up_block_types",
        "use_linear_projection",
    }
)


@dataclass(frozen=True)
class UNetConfig:
    """A UNet of the Stable Diffusion family: its tensors, and the numbers that none of them shows.

    Attributes:
        tensors: which tensors it has, in which shapes.
        heads: attention heads of each down block; of the up blocks in reverse. diffusers calls
            this number `attention_head_dim`.
        time_ids_dim: width of the embedding of each number in `time_ids` (sizes and crops), of
            SDXL and its children.
        norm_groups: groups of every group norm.
        norm_eps: what the group norms of resnets and output add to the variance.
        flip_sin_to_cos: whether cosines come first in the embedding of a time.
        freq_shift: what is taken off the number of frequencies in that embedding.
    """

    tensors: UNetTensors
    heads: tuple[int, ...]
    time_ids_dim: int | None = None
    norm_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0


def from_diffusers(config: Mapping[str, Any], *, origin: str = "config.json") -> UNetConfig:
    """The UNet that a diffusers configuration describes.

    Args:
        config: the content of a `config.json`; what is missing has diffusers' default.
        origin: what to call it in messages.

    Returns:
        The same as our own record.

    Raises:
        BaseModelError: a field has a value that is not implemented, or two contradict each other.
    """
    return _Reader(config, origin).config()


def as_diffusers(config: UNetConfig) -> dict[str, Any]:
    """The configuration with which diffusers builds the same net."""
    tensors = config.tensors
    written: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": tensors.in_channels,
        "out_channels": tensors.out_channels,
        "block_out_channels": list(tensors.block_out_channels),
        "layers_per_block": tensors.layers_per_block,
        "down_block_types": [_type(_DOWN, depth != 0) for depth in tensors.down_depths],
        "up_block_types": [_type(_UP, depth != 0) for depth in tensors.up_depths],
        "mid_block_type": _type(_MIDDLES, tensors.mid),
        "cross_attention_dim": tensors.cross_attention_dim,
        "attention_head_dim": list(config.heads),
        "use_linear_projection": tensors.linear_projection,
        "norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "freq_shift": config.freq_shift,
    }
    # Of a block without attention diffusers wants a number and does not use it; the middle block
    # has that of the last down block, so a net whose two differ cannot be written down.
    down = [_listed(depth) or 1 for depth in tensors.down_depths]
    if tensors.mid == "attention" and tensors.down_depths[-1] == 0:
        down[-1] = tensors.mid_depth
    written["transformer_layers_per_block"] = down
    up = [_listed(depth) or 1 for depth in tensors.up_depths]
    reverse = up if down != up[::-1] or any(isinstance(depth, list) for depth in down) else None
    written["reverse_transformer_layers_per_block"] = reverse
    if config.time_ids_dim is not None:
        written |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.time_ids_dim,
            "projection_class_embeddings_input_dim": tensors.add_embedding_dim,
        }
    return written


def _type(types: Mapping[Any, Any], wanted: Any) -> Any:
    return next(name for name, meaning in types.items() if meaning == wanted)


def _listed(depth: int | tuple[int, ...]) -> int | list[int]:
    return list(depth) if isinstance(depth, tuple) else depth


@dataclass
class _Reader:
    """One configuration, read field by field."""

    raw: Mapping[str, Any]
    origin: str
    blocks: int = field(init=False)

    def config(self) -> UNetConfig:
        self._refuse_the_rest()
        widths = self.raw.get("block_out_channels", [320, 640, 1280, 1280])
        widths = self._numbers("block_out_channels", widths)
        self.blocks = len(widths)
        layers = self._one("layers_per_block", 2)
        down, up, mid_depth = self._depths(layers)
        embedded = self._choice("addition_embed_type", {None: False, "text_time": True})
        heads = self._per_block("attention_head_dim", 8)
        groups = self._one("norm_num_groups", 32)
        mid = self._choice("mid_block_type", _MIDDLES, "UNetMidBlock2DCrossAttn")
        for i, width in enumerate(widths):
            if width % groups:
                self._refuse("block_out_channels", widths, f"multiples of {groups} groups")
            in_middle = mid == "attention" and i == self.blocks - 1
            attended = down[i] or up[-1 - i] or in_middle
            if attended and width % heads[i]:
                self._refuse("attention_head_dim", heads, f"a divisor of {widths} each")
        tensors = UNetTensors(
            block_out_channels=widths,
            down_depths=down,
            up_depths=up,
            layers_per_block=layers,
            mid=mid,
            mid_depth=mid_depth,
            cross_attention_dim=self._one("cross_attention_dim", 1280),
            add_embedding_dim=(
                self._one("projection_class_embeddings_input_dim") if embedded else None
            ),
            linear_projection=bool(self.raw.get("use_linear_projection", False)),
            in_channels=self._one("in_channels", 4),
            out_channels=self._one("out_channels", 4),
        )
        return UNetConfig(
            tensors,
            heads,
            time_ids_dim=self._one("addition_time_embed_dim") if embedded else None,
            norm_groups=groups,
            norm_eps=float(self.raw.get("norm_eps", 1e-5)),
            flip_sin_to_cos=bool(self.raw.get("flip_sin_to_cos", True)),
            freq_shift=int(self.raw.get("freq_shift", 0)),
        )

    def _depths(self, layers: int) -> tuple[Depths, Depths, int]:
        """Transformer blocks of the down blocks, the up blocks and the middle block."""
        down_types = self._types("down_block_types", _DOWN, (True, True, True, False))
        up_types = self._types("up_block_types", _UP, (False, True, True, True))
        name, reverse = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
        depths = self.raw.get(name, 1)
        down = [depths] * self.blocks if isinstance(depths, int) else list(depths)
        up = self.raw.get(reverse)
        if up is None:
            up, reverse = down[::-1], name
            if any(not isinstance(depth, int) for depth in down):
                self._refuse("reverse_transformer_layers_per_block", None, "a list beside a nested")
        mid = self._choice("mid_block_type", _MIDDLES, "UNetMidBlock2DCrossAttn")
        if mid == "attention" and not isinstance(down[-1], int):
            self._refuse(name, depths, "one number for the last block, which the middle one has")
        return (
            self._attended(name, down, down_types, layers),
            self._attended(reverse, up, up_types, layers + 1),
            down[-1] if mid == "attention" else 1,
        )

    def _attended(self, name: str, depths: Any, attended: tuple[bool, ...], layers: int) -> Depths:
        """Depths without those of blocks that have no attention."""
        found: list[int | tuple[int, ...]] = []
        for depth, is_attended in zip(depths, attended, strict=False):
            per_layer = depth if isinstance(depth, int) else tuple(depth)
            wrong = isinstance(per_layer, tuple) and len(per_layer) != layers
            if is_attended and (wrong or not per_layer):
                self._refuse(name, depths, f"a number or {layers} numbers for each attention block")
            found.append(per_layer if is_attended else 0)
        if len(found) != self.blocks:
            self._refuse(name, depths, f"{self.blocks} entries, one for each block")
        return tuple(found)

    def _refuse_the_rest(self) -> None:
        for name, value in self.raw.items():
            if name.startswith("_") or name in _USED | _PASSED_OVER or value is None:
                continue
            if name not in _FIXED:
                self._refuse(name, value, "no such field")
            if value not in _FIXED[name]:
                self._refuse(name, value, " or ".join(map(repr, _FIXED[name])) or "null")

    def _types(
        self, name: str, known: Mapping[str, bool], default: tuple[bool, ...]
    ) -> tuple[bool, ...]:
        types = self.raw.get(name)
        if types is not None and not set(types) <= set(known):
            self._refuse(name, types, f"{' or '.join(known)} for each block")
        found = default if types is None else tuple(known[kind] for kind in types)
        if len(found) != self.blocks:
            self._refuse(name, types, f"{self.blocks} entries, as block_out_channels has")
        return found

    def _choice(self, name: str, known: Mapping[Any, Any], default: Any = None) -> Any:
        value = self.raw.get(name, default)
        if value not in known:
            self._refuse(name, value, " or ".join(map(repr, known)))
        return known[value]

    def _one(self, name: str, default: int | None = None) -> int:
        """One positive number; a list of equal ones counts as one."""
        value = self.raw.get(name, default)
        if isinstance(value, list | tuple) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or value < 1:
            self._refuse(name, value, "one positive number")
        return value

    def _per_block(self, name: str, default: int) -> tuple[int, ...]:
        value = self.raw.get(name, default)
        found = self._numbers(name, [value] * self.blocks if isinstance(value, int) else value)
        if len(found) != self.blocks:
            self._refuse(name, value, f"one number or {self.blocks}")
        return found

    def _numbers(self, name: str, value: Any) -> tuple[int, ...]:
        are_numbers = isinstance(value, list | tuple) and all(
            isinstance(number, int) and number > 0 for number in value
        )
        if not are_numbers or not value:
            self._refuse(name, value, "positive numbers")
        return tuple(value)

    def _refuse(self, name: str, found: Any, expected: str) -> NoReturn:
        raise BaseModelError(
            f"{self.origin}: field {name} is {found!r}; expected {expected}; only UNets of the "
            f"Stable Diffusion family are supported",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
