"""A base model's modules, read off the tensor names and shapes of its checkpoint."""

from collections.abc import Iterable, Mapping

from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.errors import BaseModelError, Refusal

_WEIGHT = ".weight"
# What other files look like, by a piece of a key, and what to do about it; first match wins.
_SOMETHING_ELSE = (
    (
        ("lora_down", "lora_up", "lora_A", "lora_B", ".lora.down", "hada_w1", "lokr_w"),
        "an adapter",
        "give the base model here and the adapter as input",
    ),
    (
        ("model.diffusion_model.", "input_blocks."),
        "a checkpoint in LDM naming",
        "convert it to a diffusers folder and give that",
    ),
    (
        ("double_blocks.", "joint_blocks.", "transformer_blocks.0.attn.add_k_proj"),
        "a transformer model, not a UNet",
        "only UNet models of the Stable Diffusion family are supported",
    ),
    (
        ("text_model.", "encoder.conv_in", "decoder.conv_in"),
        "a text encoder or a VAE",
        "give the UNet: the pipeline's folder or its unet/ folder",
    ),
)


def key_prefix(keys: Iterable[str]) -> str | None:
    """What stands before `conv_in.weight`: nothing or `unet.`; None if it is no diffusers UNet."""
    keys = set(keys)
    if not any("down_blocks." in key for key in keys):
        return None
    return next((prefix for prefix in ("", UNET) if f"{prefix}conv_in.weight" in keys), None)


def spec_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], *, name: str, origin: str | None = None
) -> BaseModelSpec:
    """The modules of a diffusers UNet whose tensors have these names and shapes.

    Args:
        shapes: shape by tensor key, bare (`conv_in.weight`) or with `unet.` in front; tensors of
            other components are passed over.
        name: what to call the model.
        origin: what to call the checkpoint in messages; `name` if None.

    Returns:
        Every linear layer and convolution, in the order of `shapes`.

    Raises:
        BaseModelError: the keys are not those of a diffusers UNet.
    """
    prefix = key_prefix(shapes)
    if prefix is None:
        raise BaseModelError(
            f"{origin or name}: {_found(shapes)}. Expected a UNet in diffusers naming, with "
            f"conv_in.weight and down_blocks.*",
            code=Refusal.UNREADABLE_BASE,
        )
    modules = {}
    for key, shape in shapes.items():
        if key.startswith(prefix) and key.endswith(_WEIGHT) and len(shape) in {2, 4}:
            path = UNET + key.removeprefix(prefix).removesuffix(_WEIGHT)
            modules[path] = ModuleSpec(path, shape)
    return BaseModelSpec(name, modules)


def _found(keys: Iterable[str]) -> str:
    keys = list(keys)
    for pieces, what, remedy in _SOMETHING_ELSE:
        example = next((key for key in keys if any(piece in key for piece in pieces)), None)
        if example is not None:
            return f"found {what} (key {example}); {remedy}"
    return f"found {len(keys)} tensors, such as {', '.join(keys[:3]) or 'none'}"
