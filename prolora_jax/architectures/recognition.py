"""A base model's modules, read off the tensor names and shapes of its checkpoint."""

from collections.abc import Iterable, Mapping

from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.architectures.dit.wholeness import require_whole_stacks
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.placement import Placement, Shapes, placements
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.errors import BaseModelError, Refusal

_BASES = (UNET, LM, *(f"{component}." for component in DIT_COMPONENTS))
# What other files look like, by a piece of a key, and what to do about it; first match wins.
_SOMETHING_ELSE = (
    (
        ("lora_down", "lora_up", "lora_A", "lora_B", ".lora.down", "hada_w1", "lokr_w"),
        "an adapter",
        "give the base model here and the adapter as input",
    ),
    (
        ("double_blocks.", "joint_blocks.", "transformer_blocks.0.attn."),
        "a diffusion transformer of no known family",
        "give it in diffusers' naming, with all of its blocks",
    ),
    (
        ("model.diffusion_model.", "input_blocks."),
        "a checkpoint in LDM naming with blocks of no known layout",
        "convert it to a diffusers folder and give that",
    ),
    (
        ("text_model.", "token_embedding.", "encoder.conv_in", "decoder.conv_in"),
        "a text encoder or a VAE",
        "give the UNet: the pipeline's folder or its unet/ folder",
    ),
)


def spec_from_shapes(shapes: Shapes, *, name: str, origin: str | None = None) -> BaseModelSpec:
    """The modules of a base model whose tensors have these names and shapes.

    Args:
        shapes: shape by tensor key, in any naming that `placement` knows; tensors of components
            other than the UNet or diffusion transformer, the text encoders and the language model
            are passed over.
        name: what to call the model.
        origin: what to call the checkpoint in messages; `name` if None.

    Returns:
        Every linear layer and convolution, sorted by path.

    Raises:
        BaseModelError: the keys are those of none of these, or a block of theirs is missing.
    """
    placed = placements(shapes, origin or name)
    return spec_from_placements(placed, shapes, name=name, origin=origin)


def spec_from_placements(
    placed: Mapping[str, Placement], keys: Iterable[str], *, name: str, origin: str | None = None
) -> BaseModelSpec:
    """The modules that `placed` has found among `keys`; see `spec_from_shapes`.

    Raises:
        BaseModelError: there is no base model among them, or blocks of it are missing.
    """
    if not any(path.startswith(_BASES) for path in placed):
        raise BaseModelError(
            f"{origin or name}: {_found(keys)}. Expected a UNet in diffusers naming "
            f"(conv_in.weight, down_blocks.*) or in LDM naming (input_blocks.*), a diffusion "
            f"transformer (transformer_blocks.*, double_blocks.*), or a language "
            f"model in transformers' naming (model.layers.*)",
            code=Refusal.UNREADABLE_BASE,
        )
    require_whole_stacks(placed, origin or name)
    return BaseModelSpec(name, modules_of(placed))


def modules_of(placed: Mapping[str, Placement]) -> dict[str, ModuleSpec]:
    """The modules alone, of whichever components there are."""
    return {path: ModuleSpec(path, placement.shape) for path, placement in placed.items()}


def _found(keys: Iterable[str]) -> str:
    keys = list(keys)
    for pieces, what, remedy in _SOMETHING_ELSE:
        example = next((key for key in keys if any(piece in key for piece in pieces)), None)
        if example is not None:
            return f"found {what} (key {example}); {remedy}"
    return f"found {len(keys)} tensors, such as {', '.join(keys[:3]) or 'none'}"
