"""The LDM names of a UNet's modules: `input_blocks.4.1.proj_in`."""

from collections.abc import Iterable, Mapping

from prolora_jax.architectures.naming import UNET

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_IN_BLOCK = ("resnets", "attentions")
_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",  # of an LCM
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    # Of SD 2 with an image embedding (unCLIP). No UNet has both.
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",  # of the upscaler, which looks its noise level up
}


def ldm_paths(paths: Iterable[str]) -> Mapping[str, str]:
    """Dotted LDM name (`input_blocks.4.1.proj_in`) of every path that has one.

    The number of layers per block and whether an up block has attentions are read off the paths,
    so `paths` must be all modules of one UNet.

    Args:
        paths: dotted diffusers paths, `unet.down_blocks.1.attentions.0.proj_in`.

    Returns:
        LDM name by path, without the paths for which LDM has no name.
    """
    paths = list(paths)
    split = {path: tuple(path.removeprefix(UNET).split(".")) for path in paths}
    layers = 1 + max(
        (int(p[3]) for p in split.values() if p[0] == "down_blocks" and p[2] in _IN_BLOCK),
        default=0,
    )
    attended = {p[1] for p in split.values() if p[0] == "up_blocks" and p[2] == "attentions"}
    if any(parts[0] == "add_embedding" for parts in split.values()):
        split = {path: p for path, p in split.items() if p[:-1] != ("class_embedding",)}
    named = {path: _ldm_path(parts, layers, attended) for path, parts in split.items()}
    return {path: name for path, name in named.items() if name is not None}


def _ldm_path(parts: tuple[str, ...], layers: int, attended: set[str]) -> str | None:
    match parts:
        case ("down_blocks", i, "resnets", j, *rest):
            return _resnet(f"input_blocks.{int(i) * (layers + 1) + 1 + int(j)}.0", rest)
        case ("down_blocks", i, "attentions", j, *rest):
            return _join(f"input_blocks.{int(i) * (layers + 1) + 1 + int(j)}.1", rest)
        case ("down_blocks", i, "downsamplers", "0", "conv"):
            return f"input_blocks.{(int(i) + 1) * (layers + 1)}.0.op"
        case ("mid_block", "resnets", j, *rest):
            return _resnet(f"middle_block.{2 * int(j)}", rest)
        case ("mid_block", "attentions", "0", *rest):
            return _join("middle_block.1", rest)
        case ("up_blocks", i, "resnets", j, *rest):
            return _resnet(f"output_blocks.{int(i) * (layers + 1) + int(j)}.0", rest)
        case ("up_blocks", i, "attentions", j, *rest):
            return _join(f"output_blocks.{int(i) * (layers + 1) + int(j)}.1", rest)
        case ("up_blocks", i, "upsamplers", "0", "conv"):
            # An LDM block is a list: without attention the upsampler moves up one place.
            place = 2 if i in attended else 1
            return f"output_blocks.{int(i) * (layers + 1) + layers}.{place}.conv"
    return _OUTSIDE_BLOCKS.get(".".join(parts))


def _resnet(block: str, rest: list[str]) -> str | None:
    inner = _RESNET.get(".".join(rest))
    return None if inner is None else f"{block}.{inner}"


def _join(block: str, rest: list[str]) -> str:
    return ".".join((block, *rest))
