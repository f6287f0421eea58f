"""The plain layers of a UNet, with what all of one net's layers share."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn


@dataclass(frozen=True)
class Style:
    """What all layers of one net have in common.

    Attributes:
        groups: groups of every group norm.
        eps: what the group norms of resnets and output add to the variance.
        linear_projection: whether `proj_in` and `proj_out` are linear, not 1x1 convolutions.
        dtype: what is computed in; norms and softmax are in float32 whatever it is.
        param_dtype: what new parameters are made in.
        remat: whether the activations of a resnet or transformer block are computed again in the
            backward pass instead of kept.
    """

    groups: int
    eps: float
    linear_projection: bool
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: bool = False

    def dense(self, width: int, name: str, *, bias: bool = True) -> nn.Dense:
        """A linear layer, `(..., in) -> (..., width)`."""
        return nn.Dense(
            width, use_bias=bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def conv(
        self,
        width: int,
        name: str | None,
        *,
        kernel: int = 3,
        stride: int = 1,
        pad: tuple[int, int] | None = None,
    ) -> nn.Conv:
        """A convolution of NHWC pictures.

        Args:
            width: channels that come out.
            name: of its parameters; None for that of the attribute it is put into (`setup`).
            kernel: height and width of its window.
            stride: pixels from one window to the next.
            pad: before and behind each side; None for half the kernel. Not "SAME", which pads a
                strided convolution on one side only, unlike torch.

        Returns:
            The layer.
        """
        sides = (kernel // 2, kernel // 2) if pad is None else pad
        return nn.Conv(
            width,
            (kernel, kernel),
            (stride, stride),
            padding=(sides, sides),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def group_norm(self, name: str, *, eps: float | None = None) -> nn.GroupNorm:
        """A group norm over everything but the batch; `eps` None for the net's own."""
        return nn.GroupNorm(
            self.groups,
            epsilon=self.eps if eps is None else eps,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def layer_norm(self, name: str) -> nn.LayerNorm:
        """A layer norm over the last axis."""
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, param_dtype=self.param_dtype, name=name)

    def block(self, kind: type[nn.Module]) -> Any:
        """A class of blocks, made to keep nothing for the backward pass where that is wanted."""
        return nn.remat(kind) if self.remat else kind
