"""Norm layers of a base model: each by the layer that it feeds, which knows its width.

A spec lists layers with a weight matrix. A norm has none, and adapters seldom touch one; where it
is, and how wide, follows from the layer behind it. So it is in UNets and in CLIP's text encoders;
of the norms of other models nothing is said.
"""

from collections.abc import Mapping
from typing import NamedTuple

from prolora_jax.architectures.clip.table import COMPONENTS
from prolora_jax.architectures.naming import UNET, flat
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.spellings import ldm_paths

# End of the path of a layer, and the norm before it in the same place.
_BEFORE = {
    ".conv1": ".norm1",
    ".conv2": ".norm2",
    ".proj_in": ".norm",
    ".attn1.to_q": ".norm1",
    ".attn2.to_q": ".norm2",
    ".ff.net.0.proj": ".norm3",
    "unet.conv_out": "unet.conv_norm_out",
    ".self_attn.q_proj": ".layer_norm1",
    ".mlp.fc1": ".layer_norm2",
}
_KNOWN = (UNET, *(f"{component}." for component in COMPONENTS))


class Norm(NamedTuple):
    """A norm: the path of the layer that it feeds, and its width."""

    feeds: str
    width: int


def norms(spec: BaseModelSpec) -> Mapping[str, Norm]:
    """Every norm of a UNet and its text encoders by path, `unet.down_blocks.0.resnets.0.norm1`."""
    found = {}
    for path, module in spec.modules.items():
        if not path.startswith(_KNOWN):
            continue
        for end, norm in _BEFORE.items():
            if path.endswith(end):
                found[path.removesuffix(end) + norm] = Norm(path, module.shape[1])
    return found


def ldm_names(spec: BaseModelSpec) -> Mapping[str, str]:
    """Dotted LDM name of the UNet's layers, norms with them, by path."""
    return ldm_paths([*spec.component("unet"), *(n for n in norms(spec) if n.startswith(UNET))])


def layer_by_flat_name(spec: BaseModelSpec) -> Mapping[str, str]:
    """Path of the UNet's layers, norms with them, by flat name of either block naming."""
    paths = [*spec.component("unet"), *(norm for norm in norms(spec) if norm.startswith(UNET))]
    names = {flat(path.removeprefix(UNET)): path for path in paths}
    return names | {flat(name): path for path, name in ldm_names(spec).items()}
