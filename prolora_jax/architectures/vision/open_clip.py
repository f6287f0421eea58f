"""CLIPs in OpenAI's and OpenCLIP's own layout, in transformers' names: pure renaming and splitting.

Both towers have fused projections, `attn.in_proj_weight` with queries, keys and values from top to
bottom, and matrices that stand the other way round (`proj`, `text_projection`): a row of the input
is multiplied from the left.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from prolora_jax.architectures.clip.single_files import FUSED

Tensors = dict[str, np.ndarray]
_Renamed = Iterator[tuple[str, np.ndarray]]

_WRAPPERS = ("module.", "state_dict.", "model_state_dict.")
"""What training programs leave before every key."""
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_VISION = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    **{f"ln_pre.{leaf}": f"vision_model.pre_layrnorm.{leaf}" for leaf in ("weight", "bias")},
    **{f"ln_post.{leaf}": f"vision_model.post_layernorm.{leaf}" for leaf in ("weight", "bias")},
}
_TEXT = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    **{f"ln_final.{leaf}": f"text_model.final_layer_norm.{leaf}" for leaf in ("weight", "bias")},
}
_BLOCKS = "transformer.resblocks."
CSD_STYLE = "last_layer_style"
"""The matrix that makes a CLIP's features CSD's descriptor of style."""

_CSD_TRUNK = "backbone."


def unwrapped(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors without what training programs leave before every key, such as `module.`."""
    for wrapper in _WRAPPERS:
        if tensors and all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}
    return dict(tensors)


def vision_from_open_clip(tensors: Mapping[str, np.ndarray], prefix: str = "visual.") -> Tensors:
    """The vision tower in transformers' names, `vision_model.…` and `visual_projection.weight`.

    Args:
        tensors: by OpenCLIP's key, in torch layout; what is not under `prefix` is passed over.
        prefix: what stands before the tower's keys.

    Returns:
        The same numbers; views, nothing is copied. A key that the tower does not have in
        OpenCLIP's layout keeps its name, so that whoever compares names says so.
    """
    own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    return dict(_renamed(own, _VISION, "vision_model", "proj", "visual_projection.weight"))


def text_from_open_clip(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The text tower in transformers' names, `text_model.…` and `text_projection.weight`.

    Args:
        tensors: by OpenCLIP's key, in torch layout; the vision tower, the mask, which is computed,
            and the scale and bias of the logits are passed over.

    Returns:
        The same numbers; views, nothing is copied.
    """
    passed = ("visual.", "logit_scale", "logit_bias", "attn_mask")
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith(passed)}
    return dict(_renamed(own, _TEXT, "text_model", "text_projection", "text_projection.weight"))


def vision_from_csd(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """CSD's descriptor of style as a CLIP vision tower whose projection is the style's.

    Somepalli et al. 2024, Measuring Style Similarity in Diffusion Models (arXiv 2404.01292). The
    file has OpenAI's tower without projection under `backbone.`, and two matrices `(width, out)`:
    `last_layer_style`, and `last_layer_content`, which only training needs.

    Args:
        tensors: by CSD's key, with or without `module.` before it, in torch layout.

    Returns:
        The same numbers; views, nothing is copied.
    """
    plain = unwrapped(tensors)
    found, style = vision_from_open_clip(plain, _CSD_TRUNK), plain.get(CSD_STYLE)
    return found if style is None else {**found, "visual_projection.weight": style.T}


def _renamed(
    own: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    tower: str,
    turned: str,
    projection: str,
) -> _Renamed:
    """A tower's tensors in transformers' names; `turned` is its projection, as it is stored."""
    for key, tensor in own.items():
        if key.startswith(_BLOCKS):
            number, _, inner = key.removeprefix(_BLOCKS).partition(".")
            yield from _layer(f"{tower}.encoder.layers.{number}", inner, tensor)
        elif key == turned:
            yield projection, tensor.T
        else:
            yield names.get(key, key), tensor


def _layer(layer: str, inner: str, tensor: np.ndarray) -> _Renamed:
    """The tensors that one tensor of a block is."""
    if inner.startswith("attn.in_proj_"):
        leaf = inner.removeprefix("attn.in_proj_")
        for name, part in zip(FUSED, np.split(tensor, len(FUSED)), strict=True):
            yield f"{layer}.self_attn.{name}.{leaf}", part
    else:
        module, _, leaf = inner.rpartition(".")
        yield f"{layer}.{_LAYER.get(module, module)}.{leaf}", tensor
