"""A base model as data: which modules it has, under which names, in which shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from prolora_jax.architectures.naming import UNET, flat, ldm_paths


@dataclass(frozen=True)
class ModuleSpec:
    """One layer with a weight matrix or convolution kernel.

    Attributes:
        path: dotted diffusers path with component, `unet.mid_block.resnets.0.conv1`.
        shape: shape of the torch weight, `(out, in)` or `(out, in, kh, kw)`.
    """

    path: str
    shape: tuple[int, ...]

    def kind_is(self, kind: str) -> bool:
        """Whether this module belongs to `attn` (attention projections), `linear` or `all`."""
        if kind == "all":
            return True
        attention = ".attn1." in self.path or ".attn2." in self.path
        return len(self.shape) == 2 and (kind == "linear" or attention)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """`(out, in * kh * kw)`, the shape of the weight as a matrix (method.md 1)."""
        out, *rest = self.shape
        width = 1
        for size in rest:
            width *= size
        return out, width


@dataclass(frozen=True)
class BaseModelSpec:
    """The modules of a base model.

    Attributes:
        name: what to call it in messages and reports.
        modules: every module that an adapter could touch, by path.
    """

    name: str
    modules: Mapping[str, ModuleSpec] = field(repr=False)

    @property
    def is_sdxl_family(self) -> bool:
        """Whether it takes size and pooled-text embeddings, as SDXL and its children do.

        Kohya's trainer writes LDM block names for these and diffusers block names for SD 1 and 2.
        """
        return "unet.add_embedding.linear_1" in self.modules

    @cached_property
    def by_flat_name(self) -> Mapping[str, str]:
        """Path by flat kohya name without `lora_unet_`, for both block namings."""
        paths = {self.diffusers_flat(path): path for path in self.modules}
        return paths | {flat(name): path for path, name in self._ldm.items()}

    def diffusers_flat(self, path: str) -> str:
        """`down_blocks_1_attentions_0_proj_in` for `unet.down_blocks.1.attentions.0.proj_in`."""
        return flat(path.removeprefix(UNET))

    def ldm_flat(self, path: str) -> str:
        """`input_blocks_4_1_proj_in` for `unet.down_blocks.1.attentions.0.proj_in`.

        Raises:
            KeyError: the module is not in this base model, or LDM has no name for it.
        """
        return flat(self._ldm[path])

    @cached_property
    def _ldm(self) -> Mapping[str, str]:
        return ldm_paths(self.modules)
