"""A base model as data: which modules it has, under which names, in which shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ModuleSpec:
    """One layer with a weight matrix or convolution kernel.

    Attributes:
        path: dotted diffusers path with component, `unet.mid_block.resnets.0.conv1`.
        shape: shape of the torch weight, `(out, in)` or `(out, in, kh, kw)`.
    """

    path: str
    shape: tuple[int, ...]

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
    modules: Mapping[str, ModuleSpec]

    @cached_property
    def by_flat_name(self) -> Mapping[str, str]:
        """Path by flat kohya name, for both block namings (they never overlap, formats.md 0.2)."""
        from prolora_jax.architectures.naming import flat_names

        return {flat: path for path in self.modules for flat in flat_names(path, self)}
