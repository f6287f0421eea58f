"""LDM names of a UNet read back: which module a key of such a file means.

`naming.ldm_paths` gives every diffusers path its LDM name. Here it is run over candidate paths
and looked up in reverse, so that there is one statement of the names and no second one to
contradict it. No list of known models is needed: the file's own block numbers tell the layout.
"""

from collections.abc import Collection, Iterator

from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.unet.spellings import ldm_paths

LDM_PARTS = (
    "input_blocks.",
    "middle_block.",
    "output_blocks.",
    "out.",
    "time_embed.",
    "label_emb.",
    "encoder_hid_proj.",
    "position_net.",
)
"""Starts of the names of a UNet's modules."""

SAME_NAMES = ("encoder_hid_proj", "position_net")
"""Beside the blocks, and newer than LDM's names: they have one spelling."""

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_FIRST_LAYER = "input_blocks.0.0.weight"
_RESNET = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
# A UNet whose first block attends is of SD 1's and 2's layout. What SDXL and its refiner embed
# beside the time is in LDM called the same as the image embedding of SD 2 unCLIP.
_FIRST_ATTENTION = "input_blocks.1.1."
_SD2_EMBEDDING, _SDXL_EMBEDDING = "class_embedding", "add_embedding"


def ldm_prefix(keys: Collection[str]) -> str | None:
    """What stands before the LDM names of a UNet's tensors; None if there is no such UNet."""
    return next((prefix for prefix in _PREFIXES if prefix + _FIRST_LAYER in keys), None)


def paths_of_ldm_names(names: Collection[str]) -> dict[str, str] | None:
    """Diffusers path, with `unet.`, of every LDM module name of one UNet.

    Args:
        names: all dotted module names of a UNet (`input_blocks.4.1.proj_in`), and no others.

    Returns:
        Path by name; None when no number of layers per block explains all names.
    """
    same = {name: UNET + name for name in names if name.partition(".")[0] in SAME_NAMES}
    names = set(names) - same.keys()
    # conv_in, then for each block its layers and a downsampler, which the last one lacks.
    inputs = 1 + max(
        (int(name.split(".")[1]) for name in names if name.startswith("input_blocks.")), default=0
    )
    attends = any(name.startswith(_FIRST_ATTENTION) for name in names)
    embedding = _SD2_EMBEDDING if attends else _SDXL_EMBEDDING
    for layers in range(1, inputs):
        blocks, rest = divmod(inputs, layers + 1)
        if rest:
            continue
        # Attentions first: the place of an upsampler depends on whether its block has any.
        slots = ldm_paths(_attentions(blocks, layers))
        attentions = [path for slot, ldm in slots.items() for path in _inside(slot, ldm, names)]
        table = ldm_paths([*attentions, *_others(blocks, layers, embedding)])
        found = {name: path for path, name in table.items() if name in names}
        if found.keys() == names:
            return found | same
    return None


def _attentions(blocks: int, layers: int) -> Iterator[str]:
    for i in range(blocks):
        yield from (f"unet.down_blocks.{i}.attentions.{j}" for j in range(layers))
        yield from (f"unet.up_blocks.{i}.attentions.{j}" for j in range(layers + 1))
    yield "unet.mid_block.attentions.0"


def _inside(slot: str, ldm: str, names: set[str]) -> Iterator[str]:
    """Paths of the modules in a slot, which have the same names in both spellings."""
    if f"{ldm}.proj_in" in names:  # else it is an upsampler, or nothing
        yield from (slot + name.removeprefix(ldm) for name in names if name.startswith(f"{ldm}."))


def _others(blocks: int, layers: int, embedding: str) -> Iterator[str]:
    resnets = [f"mid_block.resnets.{j}" for j in range(2)]
    for i in range(blocks):
        resnets += [f"down_blocks.{i}.resnets.{j}" for j in range(layers)]
        resnets += [f"up_blocks.{i}.resnets.{j}" for j in range(layers + 1)]
        yield f"unet.down_blocks.{i}.downsamplers.0.conv"
        yield f"unet.up_blocks.{i}.upsamplers.0.conv"
    yield from (f"unet.{resnet}.{layer}" for resnet in resnets for layer in _RESNET)
    yield from (f"unet.{layer}" for layer in ("conv_in", "conv_norm_out", "conv_out"))
    yield from (f"unet.{name}.linear_{i}" for name in ("time_embedding", embedding) for i in (1, 2))
    yield from ("unet.time_embedding.cond_proj", "unet.class_embedding")
