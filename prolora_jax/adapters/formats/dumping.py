"""An `Adapter` to tensors under the keys of one format."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats import diffusers, flax_keys, kohya, maxdiffusion, peft
from prolora_jax.adapters.formats.header_strings import trained_with
from prolora_jax.adapters.formats.keys import FORMATS
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import Refusal, UsageError

Tensors = dict[str, np.ndarray]


def dump(adapter: Adapter, format: str, spec: BaseModelSpec) -> tuple[Tensors, Mapping[str, str]]:
    """Write an adapter's tensors under the keys of `format`.

    The update of each module stays the same number. Formats that have a field for the scale keep
    the factors bit for bit; elsewhere it is multiplied into `up`, in float32 (docs/formats.md).

    Args:
        adapter: resolved, or resolvable against `spec`.
        format: one of `FORMATS`.
        spec: the base model the adapter is for; it knows the names.

    Returns:
        Tensors by key, and the header strings.

    Raises:
        UsageError: there is no such format.
        AdapterRefused: a module is not in `spec`, or its scale does not fit its dtype.
    """
    require_format(format)
    adapter = resolve(adapter, spec)
    adapter = replace(adapter, modules=tuple(_shaped(m, spec) for m in adapter.modules))
    # The configuration is spent: its scale is in each module's alpha, and of another rank it
    # would be wrong.
    metadata = {key: text for key, text in adapter.metadata.items() if key != HEADER_KEY}
    metadata |= trained_with(adapter)
    match format:
        case "diffusers":
            return diffusers.dump_tensors(adapter), {"format": "pt"} | metadata
        case "peft":
            config = {HEADER_KEY: peft.configuration(adapter)}
            return peft.dump_tensors(adapter), {"format": "pt"} | metadata | config
        case "flax":
            return flax_keys.dump_tensors(adapter), metadata
        case "maxdiffusion":
            return maxdiffusion.dump_tensors(adapter, spec), metadata
    return kohya.dump_tensors(adapter, spec, ldm=format == "kohya-ldm"), metadata


def key_names(adapter: Adapter, format: str, spec: BaseModelSpec) -> frozenset[str]:
    """What `dump` would call the modules, without touching a number.

    Args:
        adapter: resolved against `spec`.
        format: one of `FORMATS`.
        spec: the base model it is for.

    Raises:
        AdapterRefused: the format has no name for a module.
    """
    if format not in {"kohya-ldm", "kohya-diffusers", "maxdiffusion"}:
        return frozenset(module.path for module in adapter.modules)
    ldm = format == "kohya-ldm" or (format == "maxdiffusion" and spec.is_sdxl_family)
    names = (kohya.module_name(m.path, spec, ldm, adapter.origin) for m in adapter.modules)
    return frozenset(names)


def require_format(format: str) -> None:
    """Check the name of a format.

    Raises:
        UsageError: there is no such format.
    """
    if format not in FORMATS:
        raise UsageError(
            f"format {format!r} is unknown; expected one of {', '.join(FORMATS)}",
            code=Refusal.BAD_OPTION,
        )


def concrete_format(choice: str, spec: BaseModelSpec) -> str | None:
    """The format behind a choice of the command line.

    Args:
        choice: `same`, `kohya`, or one of `FORMATS`.
        spec: the base model that the output is for.

    Returns:
        None for `same`; for `kohya` what its trainer writes for this base: LDM block names for
        SDXL's family, diffusers block names for SD 1 and 2.
    """
    if choice == "same":
        return None
    if choice == "kohya":
        return "kohya-ldm" if spec.is_sdxl_family else "kohya-diffusers"
    return choice


def fold_scales(adapter: Adapter) -> Adapter:
    """The same updates with scale 1: each scale is multiplied into `up`.

    Raises:
        AdapterRefused: a scaled factor does not fit its dtype.
    """
    modules = tuple(
        replace(m, up=diffusers.scaled_up(m, adapter.origin), alpha=None) for m in adapter.modules
    )
    return replace(adapter, modules=modules)


def _shaped(module: LoraModule, spec: BaseModelSpec) -> LoraModule:
    """With as many axes as the layer's weight; readers reject a 1x1 window on a linear layer."""
    if module.path not in spec.modules:
        return module
    shape = spec.modules[module.path].shape
    return replace(
        module,
        down=layout.matrix_to_down(layout.down_to_matrix(module.down), shape),
        up=layout.matrix_to_up(layout.up_to_matrix(module.up), shape),
    )
