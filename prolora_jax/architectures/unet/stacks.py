"""What a UNet numbers: stages, the slots of a stage, the transformer blocks of an attention."""

from prolora_jax.architectures.stack import Stack

BLOCK = ".transformer_blocks."
DIRECTIONS = ("down_blocks", "mid_block", "up_blocks")

_BLOCKS = Stack("transformer_blocks", "blocks", deep=True)
_SLOTS = (
    Stack("attentions", "slots", (_BLOCKS,)),
    Stack("downsamplers", "slots"),
    Stack("motion_modules", "slots", (_BLOCKS,)),
    Stack("resnets", "slots"),
    Stack("upsamplers", "slots"),
)
UNET_STACKS = tuple(
    Stack(name, "stages", _SLOTS, single=name == "mid_block", kind="stage") for name in DIRECTIONS
)


def split_block(path: str) -> tuple[str, int, str] | None:
    """(slot, block index, role) of a path inside a transformer block, else None."""
    slot, found, rest = path.partition(BLOCK)
    index, _, role = rest.partition(".")
    return (slot, int(index), role) if found and index.isdigit() else None
