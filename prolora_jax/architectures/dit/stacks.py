"""What a diffusion transformer numbers: its stacks of blocks, which are never mixed.

A block with two streams is no block with one, and a refiner is neither. Experts of a block are a
set: they keep their numbers, and are aligned with nothing.
"""

from prolora_jax.architectures.likeness import Surroundings
from prolora_jax.architectures.stack import Stack

DIT_COMPONENTS = ("transformer", "transformer_2")
"""Components that are diffusion transformers; the second is Wan 2.2's expert for low noise."""

DIT_STACKS = tuple(
    Stack(name, "layers", deep=True)
    for name in (
        "transformer_blocks",
        "single_transformer_blocks",
        "joint_transformer_blocks",
        "double_stream_blocks",
        "single_stream_blocks",
        "blocks",
        "layers",
        "noise_refiner",
        "context_refiner",
        "context_embedder.token_refiner.refiner_blocks",
        "text_fusion.layerwise_blocks",
        "text_fusion.refiner_blocks",
        "mode_blocks.image",
        "mode_blocks.image_cond",
        "txt_mode_blocks",
        "distilled_guidance_layer.layers",
    )
)

DIT_SURROUNDINGS = Surroundings(DIT_COMPONENTS[0], tuple(f"{stack.name}." for stack in DIT_STACKS))
"""What decides which published transformer another one is like: its blocks alone."""
