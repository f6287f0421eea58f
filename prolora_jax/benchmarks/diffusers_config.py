"""`config.json` of a made UNet of SDXL's family, as diffusers writes it."""

from typing import Any

from prolora_jax.architectures.unet.table import UNetTensors

_MOST_GROUPS = 32
_SIZES = 6
"""Numbers (sizes, crop, target sizes) that are embedded beside the pooled text."""


def diffusers_config(config: UNetTensors, *, head_width: int) -> dict[str, Any]:
    """The fields with which diffusers builds a UNet that has the tensors of `unet_table`.

    Args:
        config: of SDXL's family: an added embedding, and a middle attention (where there is one)
            as deep as the last down block's, which is where diffusers takes its depth from.
        head_width: channels of one attention head.
    """
    widths = config.block_out_channels
    added = config.add_embedding_dim or 0
    # SDXL embeds each of its six sizes in 256 channels beside a pooled text of 1280.
    pooled = added * 1280 // 2816
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.39.0",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (added - pooled) // _SIZES,
        "attention_head_dim": [width // head_width for width in widths],
        "block_out_channels": list(widths),
        "cross_attention_dim": config.cross_attention_dim,
        "down_block_types": [
            "CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.down_depths
        ],
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_type": "UNetMidBlock2D" if config.mid == "resnet" else "UNetMidBlock2DCrossAttn",
        "norm_num_groups": min(_MOST_GROUPS, widths[0] // 2),
        "out_channels": config.out_channels,
        "projection_class_embeddings_input_dim": added,
        "reverse_transformer_layers_per_block": [_layers(depth) for depth in config.up_depths],
        "sample_size": 128,
        "transformer_layers_per_block": [_layers(depth) for depth in config.down_depths],
        "up_block_types": [
            "CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in config.up_depths
        ],
        "use_linear_projection": config.linear_projection,
    }


def _layers(depth: int | tuple[int, ...]) -> int | list[int]:
    """Of a block without attention it says 1, as SDXL's own file does."""
    return list(depth) if isinstance(depth, tuple) else depth or 1
