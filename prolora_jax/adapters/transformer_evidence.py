"""Which published diffusion transformers have an adapter's modules, and what words say beside that.

Names and shapes decide between architectures, in every spelling. Between checkpoints of one
architecture only header strings do, and those are hints.
"""

from collections.abc import Iterable, Mapping
from functools import cache

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.adapters.formats.lora_config import base_name
from prolora_jax.architectures.dit.checkpoints import checkpoint_said
from prolora_jax.architectures.dit.published import DITS
from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.spec import BaseModelSpec

# The surest first. `modelspec.architecture` is none: trainers write a family's first checkpoint.
_SAYING = ("ss_sd_model_name", "ss_base_model_version")


def held_by_transformers(modules: Iterable[LoraModule]) -> dict[str, dict[str, str]]:
    """Path in each published transformer, by name in the file, of the modules that it has.

    Args:
        modules: as parsed, or resolved; of a fused layer the path is its first part's.
    """
    held: dict[str, dict[str, str]] = {}
    given = list(modules)
    for architecture in DITS:
        spec = _published(architecture)
        names = spec.layer_names
        held[architecture] = {}
        for module in given:
            layer = names.find(module.path, names.components[0])
            if layer is None:
                continue
            width = spec.modules[layer.parts[0].path].shape[1]
            if module.weight_shape[:2] == (layer.rows, width):
                held[architecture][module.path] = layer.parts[0].path
    return held


def same_shapes(architecture: str) -> str | None:
    """Which other checkpoints have the shapes of a published transformer; None of a UNet."""
    table = DITS.get(architecture)
    if table is None or not table.same:
        return None
    others = ", ".join(table.same)
    return f"{architecture}: the same shapes as {others}, which they do not tell apart"


def other_checkpoint(metadata: Mapping[str, str], source: BaseModelSpec) -> tuple[str, ...]:
    """A flag where a header says another checkpoint of a transformer than the source's name does.

    Args:
        metadata: header strings of the adapter.
        source: the base model that it is offered for.
    """
    if not source.layer_names.components:
        return ()
    said = {"base_model_name_or_path": base_name(metadata) or ""}
    said |= {key: metadata.get(key, "") for key in _SAYING}
    own = checkpoint_said(source.name)
    told = ((key, name) for key, words in said.items() if (name := checkpoint_said(words)))
    key, name = next(told, ("", own))
    if own is None or name == own:
        return ()
    return (
        f"other-checkpoint: {key} says {name}, and base model {source.name} is {own}: "
        f"equal shapes, other weights; name the base model that the adapter was trained on",
    )


@cache
def _published(architecture: str) -> BaseModelSpec:
    return published_spec(architecture)
