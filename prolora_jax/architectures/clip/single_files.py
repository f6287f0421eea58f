"""Text encoders in single files: which component they are, and OpenCLIP's names for them."""

from collections.abc import Collection, Iterator, Mapping

# What stands before the names of transformers' CLIP, and the component that these belong to.
CLIP_PREFIXES: Mapping[str, str] = {
    "text_encoder.": "text_encoder.",
    "text_encoder_2.": "text_encoder_2.",
    "cond_stage_model.transformer.": "text_encoder.",
    "conditioner.embedders.0.transformer.": "text_encoder.",
}
# The same for OpenCLIP's own names. SDXL's refiner has its only encoder in the first place.
OPEN_CLIP_PREFIXES: Mapping[str, str] = {
    "cond_stage_model.model.": "text_encoder.",
    "conditioner.embedders.0.model.": "text_encoder_2.",
    "conditioner.embedders.1.model.": "text_encoder_2.",
}
FUSED = ("q_proj", "k_proj", "v_proj")
"""What OpenCLIP's `attn.in_proj_weight` holds, from top to bottom."""

_LAYER = {
    "attn.out_proj.weight": "self_attn.out_proj",
    "mlp.c_fc.weight": "mlp.fc1",
    "mlp.c_proj.weight": "mlp.fc2",
}
# SD 2 uses the output of the last layer but one, and diffusers keeps no more: 23 of 24.
_MOST_LAYERS = {"cond_stage_model.model.": 23}


def open_clip_layers(keys: Collection[str], prefix: str) -> Iterator[tuple[str, str]]:
    """OpenCLIP's layers in a file, as `("transformer.resblocks.3.", path of the same layer)`.

    Args:
        keys: all keys of the file.
        prefix: one of `OPEN_CLIP_PREFIXES`.

    Yields:
        Key up to the layer's number, with `prefix`; path with component.
    """
    count = 0
    while f"{prefix}transformer.resblocks.{count}.attn.in_proj_weight" in keys:
        count += 1
    for i in range(min(count, _MOST_LAYERS.get(prefix, count))):
        path = f"{OPEN_CLIP_PREFIXES[prefix]}text_model.encoder.layers.{i}"
        yield f"{prefix}transformer.resblocks.{i}", path


def plain_layers(layer: str, path: str) -> Iterator[tuple[str, str]]:
    """Key and path of the weights of one layer that have a tensor of their own."""
    for name, inner in _LAYER.items():
        yield f"{layer}.{name}", f"{path}.{inner}"
