"""What decides which published UNet another one is like, and what may differ."""

from prolora_jax.architectures.likeness import Surroundings
from prolora_jax.architectures.unet.stacks import DIRECTIONS

ADDED = ("fuser", "processor", "motion_modules")
"""Levels of paths in what programs put between the layers of a block: boxes with words (GLIGEN),
image prompts (IP-Adapter), movement (AnimateDiff)."""

# Places that say nothing of the text: what goes in and comes out, times, classes and pictures.
_NOT_TEXT = (
    *("conv_in", "conv_out", "time_embedding", "class_embedding", "position_net"),
    "encoder_hid_proj.image_projection_layers",
)

UNET_SURROUNDINGS = Surroundings("unet", DIRECTIONS, ADDED, _NOT_TEXT)
