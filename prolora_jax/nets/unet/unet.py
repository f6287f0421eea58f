"""The UNet of the Stable Diffusion family, in Flax, with parameters named as diffusers' Flax does.

Unlike those classes it knows every net of the family: a depth of its own for each attention, and
middle blocks of one resnet or none (SSD-1B, Vega, KOALA, BK-SDM).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num

from prolora_jax.architectures.unet.table import per_attention
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.unet.blocks import DownBlock, MidBlock, UpBlock
from prolora_jax.nets.unet.config import UNetConfig
from prolora_jax.nets.unet.embeddings import EmbeddingMLP, sinusoids
from prolora_jax.nets.unet.layers import Style

Anywhere = Array | np.ndarray
"""Arrays of a device or of the host."""


class UNet(nn.Module):
    """Predicts noise (or velocity) from a noisy picture, its time and a text.

    Attributes:
        config: what to compute.
        dtype: what to compute in; norms and softmax are in float32 whatever it is.
        param_dtype: what `init` makes parameters in.
        remat: whether activations inside resnets and transformer blocks are computed again in
            the backward pass: less memory, a third more time.
    """

    config: UNetConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        sample: Float[Anywhere, "batch channels height width"],
        timesteps: Num[Anywhere, "*times"] | int | float,
        encoder_hidden_states: Float[Anywhere, "batch text text_width"],
        added_cond_kwargs: Mapping[str, Anywhere] | None = None,
    ) -> Float[Array, "batch out_channels height width"]:
        """The net's prediction; channels are in front, as torch and diffusers have them.

        Args:
            sample: the noisy picture.
            timesteps: one time for all, or one for each.
            encoder_hidden_states: the embedded text.
            added_cond_kwargs: for SDXL and its children `text_embeds` `(batch, pooled)` and
                `time_ids` `(batch, 6)`, of the refiner `(batch, 5)`.

        Returns:
            The prediction, in `dtype`.
        """
        config, tensors = self.config, self.config.tensors
        widths, layers = tensors.block_out_channels, tensors.layers_per_block
        style = Style(
            groups=config.norm_groups,
            eps=config.norm_eps,
            linear_projection=tensors.linear_projection,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            remat=self.remat,
        )
        time = self._time(style, sample.shape[0], jnp.asarray(timesteps), added_cond_kwargs)
        text = jnp.asarray(encoder_hidden_states, self.dtype)
        hidden = jnp.asarray(sample, self.dtype).transpose(0, 2, 3, 1)  # NCHW -> NHWC
        hidden = style.conv(widths[0], "conv_in")(hidden)

        kept = (hidden,)
        for i, width in enumerate(widths):
            block = DownBlock(
                width,
                layers=layers,
                depths=per_attention(tensors.down_depths[i], layers),
                heads=config.heads[i],
                downsamples=i < len(widths) - 1,
                style=style,
                name=f"down_blocks_{i}",
            )
            hidden, more = block(hidden, time, text)
            kept += more

        if tensors.mid is not None:
            depth = tensors.mid_depth if tensors.mid == "attention" else None
            middle = MidBlock(depth, config.heads[-1], style, name="mid_block")
            hidden = middle(hidden, time, text)

        for i, width in enumerate(reversed(widths)):
            block = UpBlock(
                width,
                depths=per_attention(tensors.up_depths[i], layers + 1),
                heads=config.heads[-1 - i],
                style=style,
                name=f"up_blocks_{i}",
            )
            kept, mine = kept[: -layers - 1], kept[-layers - 1 :]
            # What the next block is handed says how large its picture is, odd sizes included.
            size = (kept[-1].shape[1], kept[-1].shape[2]) if kept else None
            hidden = block(hidden, mine, time, text, size)

        hidden = nn.silu(style.group_norm("conv_norm_out")(hidden))
        return style.conv(tensors.out_channels, "conv_out")(hidden).transpose(0, 3, 1, 2)

    def _time(
        self,
        style: Style,
        batch: int,
        timesteps: Array,
        added: Mapping[str, Anywhere] | None,
    ) -> Array:
        """The embedding that every resnet sees, `(batch, time)`."""
        config, width = self.config, self.config.tensors.time_dim
        waves = {"cosines_first": config.flip_sin_to_cos, "shift": config.freq_shift}
        times = jnp.broadcast_to(timesteps.reshape(-1), (batch,))
        embedded = sinusoids(times, config.tensors.block_out_channels[0], **waves)
        time = EmbeddingMLP(width, style, name="time_embedding")(embedded.astype(self.dtype))
        if config.time_ids_dim is None:
            return time
        if added is None or not {"text_embeds", "time_ids"} <= set(added):
            raise UsageError(
                f"added_cond_kwargs: found {sorted(added or ())}; expected text_embeds and "
                f"time_ids; this UNet is of the SDXL family and needs both",
                code=Refusal.BAD_OPTION,
            )
        sizes = sinusoids(jnp.asarray(added["time_ids"]).reshape(-1), config.time_ids_dim, **waves)
        pooled = jnp.asarray(added["text_embeds"], jnp.float32)
        both = jnp.concatenate((pooled, sizes.reshape(batch, -1)), axis=-1).astype(self.dtype)
        return time + EmbeddingMLP(width, style, name="add_embedding")(both)
