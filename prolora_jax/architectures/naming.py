"""The spellings of a module: diffusers and LDM block names, dotted and flat, and Flax trees.

Kohya files write a module path with its dots replaced by underscores. Undoing that by patterns is
guesswork (`to_out_0` or `to_out.0`?), so nobody here does it: the flat names of all modules of a
base are generated from its paths, and a file's names are looked up. Flattening is injective for
every UNet of the Stable Diffusion family and the two spellings never meet.
"""

import re

UNET = "unet."

WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_dp_module",
    "_forward_module",
    "module",
)
"""Levels that training programs put around a layer: compilation, sharding, checkpointing."""

# A flat name keeps the underscore before a wrapper, whatever the wrapper itself begins with.
_FLAT_WRAPPER = re.compile(rf"_(?:{'|'.join(WRAPPERS)})(?=_|$)")


def without_wrappers(name: str) -> str:
    """A key or a module's name without the levels of `WRAPPERS`, wherever and however often.

    No layer of a UNet or of CLIP has such a level of its own. Levels are dotted
    (`unet._orig_mod.conv_in`) or, in kohya's names, flat (`lora_unet__orig_mod_conv_in`).

    Args:
        name: dotted, flat, or a flat name with dotted ends.
    """
    # Most names have none, and names are many.
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    if parts and not parts[0].startswith("_"):
        parts[0] = _FLAT_WRAPPER.sub("", parts[0])
    return ".".join(parts)


def flat(dotted: str) -> str:
    """The name a kohya file gives to `dotted` (without component and its prefix)."""
    return dotted.replace(".", "_")


def flax_path(path: str) -> str:
    """Place of a module in a Flax tree: `unet/down_blocks_1/attentions_0/proj_in`.

    In the UNet a number is glued to the name before it. A text encoder keeps its layer's number
    as a level of its own: `text_encoder/text_model/encoder/layers/0/mlp/fc1`.

    Args:
        path: dotted diffusers path with component.
    """
    if not path.startswith(UNET):
        return path.replace(".", "/")
    parts: list[str] = []
    for part in path.split("."):
        if part.isdecimal():
            parts[-1] += f"_{part}"
        else:
            parts.append(part)
    return "/".join(parts)
