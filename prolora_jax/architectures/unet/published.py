"""Published UNets by id, as the numbers from which `unet_table` lists their tensors."""

from collections.abc import Mapping
from dataclasses import replace

from prolora_jax.architectures.unet.table import UNetTensors

_SD15 = UNetTensors(
    block_out_channels=(320, 640, 1280, 1280),
    down_depths=(1, 1, 1, 0),
    up_depths=(0, 1, 1, 1),
)
_SDXL = UNetTensors(
    block_out_channels=(320, 640, 1280),
    down_depths=(0, 2, 10),
    up_depths=(10, 2, 0),
    mid_depth=10,
    cross_attention_dim=2048,
    add_embedding_dim=2816,
    linear_projection=True,
)
_KOALA_700M = replace(
    _SDXL, layers_per_block=1, down_depths=(0, 2, 5), up_depths=(5, 2, 0), mid=None
)
_BK_SDM_BASE = replace(_SD15, layers_per_block=1)

CONFIGS: Mapping[str, UNetTensors] = {
    "sd15": _SD15,
    "sd21": replace(_SD15, cross_attention_dim=1024, linear_projection=True),
    "sdxl": _SDXL,
    "sdxl-refiner": UNetTensors(
        block_out_channels=(384, 768, 1536, 1536),
        down_depths=(0, 4, 4, 0),
        up_depths=(0, 4, 4, 0),
        mid_depth=4,
        cross_attention_dim=1280,
        add_embedding_dim=2560,
        linear_projection=True,
    ),
    # Segmind's nets keep one resnet of the middle block and prune each attention by itself.
    "ssd-1b": replace(
        _SDXL, down_depths=(0, 2, 4), mid="resnet", up_depths=((4, 4, 10), (2, 1, 1), 0)
    ),
    "vega": replace(_SDXL, down_depths=(0, 1, 2), mid="resnet", up_depths=(2, 1, 0)),
    "koala-700m": _KOALA_700M,
    "koala-1b": replace(
        _KOALA_700M, down_depths=(0, 2, 6), mid="attention", mid_depth=6, up_depths=(6, 2, 0)
    ),
    "bk-sdm-base": _BK_SDM_BASE,  # also segmind/small-sd
    "bk-sdm-small": replace(_BK_SDM_BASE, mid=None),
    "bk-sdm-tiny": replace(  # also segmind/tiny-sd
        _BK_SDM_BASE,
        block_out_channels=(320, 640, 1280),
        down_depths=(1, 1, 1),
        up_depths=(1, 1, 1),
        mid=None,
    ),
}
