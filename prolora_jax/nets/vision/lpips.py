"""LPIPS: how differently two pictures look, from what VGG16's layers make of them.

Zhang et al. 2018, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (arXiv
1801.03924), eq. 1: `d(x, y) = Σ_l mean_hw Σ_c w_lc (x̂_lhwc − ŷ_lhwc)²` with features x̂ of length
one along the channels. The weights are version 0.1's for VGG16.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from prolora_jax.architectures.vision.lpips import VGG_FEATURES
from prolora_jax.errors import Refusal, UsageError

Looked = tuple[Array, ...]
"""Features of pictures, one array `(batch, rows, columns, channels)` for each layer looked at."""

# Numbers of the convolutions whose ReLU is looked at.
_LOOKS = (2, 7, 14, 21, 28)
WIDTHS = (64, 128, 256, 512, 512)
"""Channels of these layers."""

# Of pictures from -1 to 1; lpips' own rounding of ImageNet's mean and deviation.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10
_SMALLEST = 16  # halved four times, one pixel is left


class Lpips(nn.Module):
    """LPIPS with VGG16.

    Attributes:
        widths: channels of the five stages; other than VGG16's only in small nets for tests.
        dtype: what to compute in.
        param_dtype: what `init` makes parameters in.
    """

    widths: tuple[int, ...] = WIDTHS
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        """The layers, which several methods share."""
        self.features = VggTrunk(self.widths, self.dtype, self.param_dtype)
        for stage in range(len(self.widths)):
            head = nn.Conv(
                1, (1, 1), use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype
            )
            setattr(self, f"lin{stage}", head)

    def __call__(
        self, one: Float[Array, "batch height width 3"], other: Float[Array, "batch height width 3"]
    ) -> Float[Array, " batch"]:
        """Distances of pictures with values from -1 to 1, pair by pair; zero for equal ones.

        Args:
            one: pictures, channels last.
            other: as many, of the same size.

        Raises:
            UsageError: the pictures are too small for five stages.
        """
        return self.apart(self.look(one), self.look(other))

    def look(self, pictures: Float[Array, "batch height width 3"]) -> Looked:
        """Features of length one along the channels, to be compared with many others.

        Args:
            pictures: values from -1 to 1, channels last.

        Raises:
            UsageError: they are too small for five stages.
        """
        if min(pictures.shape[1:3]) < _SMALLEST:
            raise UsageError(
                f"pictures of {pictures.shape[1]} x {pictures.shape[2]} pixels: expected at least "
                f"{_SMALLEST} x {_SMALLEST} for LPIPS; enlarge them",
                code=Refusal.BAD_OPTION,
            )
        shift, scale = (np.asarray(x, np.float32) for x in (_SHIFT, _SCALE))
        scaled = (pictures - shift[None, None, None]) / scale[None, None, None]
        return tuple(_of_length_one(found) for found in self.features(scaled.astype(self.dtype)))

    def apart(self, one: Looked, other: Looked) -> Float[Array, " batch"]:
        """Distances of pictures that were looked at; a batch of one stands beside every other.

        Args:
            one: of `look`.
            other: of `look`, for pictures of the same size.
        """
        total = jnp.zeros((), jnp.float32)
        for stage, (a, b) in enumerate(zip(one, other, strict=True)):
            weighed = getattr(self, f"lin{stage}")(jnp.square(a - b))
            total = total + weighed.mean(axis=(1, 2, 3), dtype=jnp.float32)
        return total


class VggTrunk(nn.Module):
    """VGG16's convolutions, named by torchvision's numbers.

    Simonyan and Zisserman 2015 (arXiv 1409.1556), configuration D.

    Attributes:
        widths: channels of the five stages.
        dtype: what to compute in.
        param_dtype: what `init` makes parameters in.
    """

    widths: tuple[int, ...]
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, hidden: Float[Array, "batch height width 3"]) -> Looked:
        """The last layer of each of the five stages, behind its ReLU."""
        kept: Looked = ()
        for number, before in zip(VGG_FEATURES, (0, *VGG_FEATURES), strict=False):
            if number - before == 3:  # a convolution, its ReLU, and a pool in between
                hidden = nn.max_pool(hidden, (2, 2), (2, 2))
            conv = nn.Conv(
                self.widths[len(kept)],
                (3, 3),
                padding=1,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=str(number),
            )
            hidden = nn.relu(conv(hidden))
            if number in _LOOKS:
                kept = (*kept, hidden)
        return kept


def _of_length_one(features: Array) -> Array:
    norm = jnp.sqrt(jnp.square(features).sum(axis=-1, keepdims=True))
    return features / (norm + _EPS)
