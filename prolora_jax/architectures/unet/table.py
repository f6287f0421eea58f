"""Every tensor of a diffusers UNet, generated from a few numbers.

The table states what a UNet of the Stable Diffusion family contains without building one: it
describes published models by name (`configs.CONFIGS`), and toy models of any width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Shape = tuple[int, ...]
Depths = tuple[int | tuple[int, ...], ...]
Entries = Iterator[tuple[str, Shape]]


@dataclass(frozen=True)
class UNetTensors:
    """The numbers that decide which tensors a UNet has.

    Attributes:
        block_out_channels: width of each down block.
        down_depths: transformer blocks per attention of each down block: one number for all its
            attentions, a tuple for each its own, 0 for a block without attention.
        up_depths: the same for the up blocks, in their own order.
        layers_per_block: resnets per down block; an up block has one more.
        mid: what the middle block is: resnet-attention-resnet, one resnet, or absent.
        mid_depth: transformer blocks of the middle attention.
        cross_attention_dim: width of the text embedding.
        add_embedding_dim: input width of `add_embedding.linear_1`; None for SD 1 and 2.
        linear_projection: whether `proj_in` and `proj_out` are linear, not 1x1 convolutions.
        in_channels: channels of the latent that goes in.
        out_channels: channels that come out.
    """

    block_out_channels: tuple[int, ...]
    down_depths: Depths
    up_depths: Depths
    layers_per_block: int = 2
    mid: Literal["attention", "resnet"] | None = "attention"
    mid_depth: int = 1
    cross_attention_dim: int = 768
    add_embedding_dim: int | None = None
    linear_projection: bool = False
    in_channels: int = 4
    out_channels: int = 4

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return 4 * self.block_out_channels[0]


def unet_table(config: UNetTensors) -> dict[str, Shape]:
    """Shape of every tensor by key, in torch layout: weights, biases and norms, sorted by key."""
    widths = config.block_out_channels
    first, last = widths[0], widths[-1]
    entries = [
        *_conv("conv_in", config.in_channels, first, 3),
        *_linear("time_embedding.linear_1", first, config.time_dim),
        *_linear("time_embedding.linear_2", config.time_dim, config.time_dim),
        *_down_blocks(config),
        *_mid_block(config, last),
        *_up_blocks(config),
        *_norm("conv_norm_out", first),
        *_conv("conv_out", first, config.out_channels, 3),
    ]
    if config.add_embedding_dim is not None:
        entries += _linear("add_embedding.linear_1", config.add_embedding_dim, config.time_dim)
        entries += _linear("add_embedding.linear_2", config.time_dim, config.time_dim)
    return dict(sorted(entries))


def _down_blocks(config: UNetTensors) -> Entries:
    width = config.block_out_channels[0]
    for i, out in enumerate(config.block_out_channels):
        depths = per_attention(config.down_depths[i], config.layers_per_block)
        for j in range(config.layers_per_block):
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", width, out, config)
            width = out
        for j, depth in enumerate(depths):
            yield from _attention(f"down_blocks.{i}.attentions.{j}", out, depth, config)
        if i < len(config.block_out_channels) - 1:
            yield from _conv(f"down_blocks.{i}.downsamplers.0.conv", out, out, 3)


def _mid_block(config: UNetTensors, width: int) -> Entries:
    if config.mid is None:
        return
    yield from _resnet("mid_block.resnets.0", width, width, config)
    if config.mid == "attention":
        yield from _attention("mid_block.attentions.0", width, config.mid_depth, config)
        yield from _resnet("mid_block.resnets.1", width, width, config)


def _up_blocks(config: UNetTensors) -> Entries:
    widths = config.block_out_channels
    # Widths of everything the down path handed over, consumed from the end.
    skips = [widths[0]]
    for i, out in enumerate(widths):
        skips += [out] * (config.layers_per_block + (i < len(widths) - 1))
    width = widths[-1]
    for i, out in enumerate(reversed(widths)):
        depths = per_attention(config.up_depths[i], config.layers_per_block + 1)
        for j in range(config.layers_per_block + 1):
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", width + skips.pop(), out, config)
            width = out
        for j, depth in enumerate(depths):
            yield from _attention(f"up_blocks.{i}.attentions.{j}", out, depth, config)
        if i < len(widths) - 1:
            yield from _conv(f"up_blocks.{i}.upsamplers.0.conv", out, out, 3)


def per_attention(depth: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Transformer blocks of each attention in a block of so many layers; () for none."""
    if isinstance(depth, tuple):
        return depth
    return (depth,) * layers if depth else ()


def _resnet(path: str, width: int, out: int, config: UNetTensors) -> Entries:
    yield from _norm(f"{path}.norm1", width)
    yield from _conv(f"{path}.conv1", width, out, 3)
    yield from _linear(f"{path}.time_emb_proj", config.time_dim, out)
    yield from _norm(f"{path}.norm2", out)
    yield from _conv(f"{path}.conv2", out, out, 3)
    if width != out:
        yield from _conv(f"{path}.conv_shortcut", width, out, 1)


def _attention(path: str, width: int, depth: int, config: UNetTensors) -> Entries:
    yield from _norm(f"{path}.norm", width)
    for name in ("proj_in", "proj_out"):
        if config.linear_projection:
            yield from _linear(f"{path}.{name}", width, width)
        else:
            yield from _conv(f"{path}.{name}", width, width, 1)
    for k in range(depth):
        block = f"{path}.transformer_blocks.{k}"
        for name, context in (("attn1", width), ("attn2", config.cross_attention_dim)):
            yield f"{block}.{name}.to_q.weight", (width, width)
            yield f"{block}.{name}.to_k.weight", (width, context)
            yield f"{block}.{name}.to_v.weight", (width, context)
            yield from _linear(f"{block}.{name}.to_out.0", width, width)
        yield from _linear(f"{block}.ff.net.0.proj", width, 8 * width)  # GEGLU: value and gate
        yield from _linear(f"{block}.ff.net.2", 4 * width, width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _norm(f"{block}.{norm}", width)


def _linear(path: str, width: int, out: int) -> Entries:
    yield f"{path}.weight", (out, width)
    yield f"{path}.bias", (out,)


def _conv(path: str, width: int, out: int, kernel: int) -> Entries:
    yield f"{path}.weight", (out, width, kernel, kernel)
    yield f"{path}.bias", (out,)


def _norm(path: str, width: int) -> Entries:
    yield f"{path}.weight", (width,)
    yield f"{path}.bias", (width,)
