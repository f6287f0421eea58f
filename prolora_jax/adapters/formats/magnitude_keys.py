"""Keys of DoRA's magnitudes, in the formats that have one.

Kohya's formats and ComfyUI's have `.dora_scale`, of either axis. peft and diffusers have
`.lora_magnitude_vector`, of rows alone, and one switch for a whole network: all of its modules have
a magnitude, or none.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.algorithms.magnitudes import MAGNITUDES, by_peft, is_per_row, magnitude_of
from prolora_jax.adapters.formats.comfyui import module_name as comfyui_name
from prolora_jax.adapters.formats.keys import PEFT_WRAPPER
from prolora_jax.adapters.formats.kohya import module_name as kohya_name
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

Tensors = dict[str, np.ndarray]
_KOHYA, _PEFT = frozenset({"kohya-ldm", "kohya-diffusers"}), frozenset({"peft", "diffusers"})
HOLD_MAGNITUDES = (*sorted(_KOHYA), "comfyui", *sorted(_PEFT))
"""Formats with a place for a magnitude."""

ANY_PLACE, ROWS = "a format with a place for them", "magnitudes of rows there"


class NoPlace(AdapterRefused):
    """Raised for a magnitude that a format cannot hold."""

    def __init__(self, adapter: Adapter, path: str, format: str, expected: str):
        super().__init__(
            f"{adapter.origin}: {path}: unsupported-algorithm:DoRA: found magnitudes for format "
            f"{format}; expected {expected}; write --format kohya, or a plain LoRA with --dora "
            "fold",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )


def without_magnitudes(adapter: Adapter) -> Adapter:
    """The same adapter, its modules of DoRA as plain pairs: of those, what a format writes first.

    Args:
        adapter: whose other modules are plain pairs or DoRA of plain pairs.
    """
    pairs = (
        LoraModule(m.path, m.parts["down"], m.parts["up"], m.alpha)
        for m in adapter.structured
        if m.algorithm == "dora"
    )
    others = tuple(m for m in adapter.structured if m.algorithm != "dora")
    return replace(adapter, modules=(*adapter.modules, *pairs), structured=others)


def require_place(adapter: Adapter, format: str) -> None:
    """Refuse an adapter whose magnitudes are kept for a format without a place for them.

    Before anything is moved: what `magnitude_tensors` would find of the output.

    Args:
        adapter: an input, fitted: its gains say which modules will have a magnitude.
        format: that is asked for, one of `FORMATS` or `kohya`, `same`, `lora`.

    Raises:
        NoPlace: the format has none for one of them.
    """
    format = adapter.format if format in {"same", "lora"} else format
    gains = {m.path: m.made_from.gains for m in adapter.modules if m.made_from is not None}
    kept = {path: found for path, found in gains.items() if found is not None}
    if not kept or format == "kohya":
        return
    if format not in HOLD_MAGNITUDES:
        raise NoPlace(adapter, next(iter(kept)), format, ANY_PLACE)
    if format in _PEFT:
        for path, found in kept.items():
            if not found.per_row:
                raise NoPlace(adapter, path, format, ROWS)
        plain = [m.path for m in adapter.modules if m.path not in kept]
        _require_whole(adapter, plain, kept, format)


def magnitude_tensors(adapter: Adapter, format: str, spec: BaseModelSpec) -> Tensors:
    """The magnitudes of an adapter's modules of DoRA under the keys of a format.

    Args:
        adapter: resolved against `spec`.
        format: one of `FORMATS`, as it is written.
        spec: the base model that it is for.

    Raises:
        NoPlace: the format has none for one of them.
    """
    modules = [m for m in adapter.structured if m.parts.keys() & MAGNITUDES]
    if not modules:
        return {}
    if format not in HOLD_MAGNITUDES:
        raise NoPlace(adapter, modules[0].path, format, ANY_PLACE)
    found: Tensors = {}
    for module in modules:
        magnitude = magnitude_of(module.parts)
        if format not in _PEFT:
            if format == "comfyui":
                name = comfyui_name(module.path, spec, adapter.origin)
            else:
                name = kohya_name(module.path, spec, format == "kohya-ldm", adapter.origin)
            found[f"{name}.dora_scale"] = magnitude
            continue
        shape = (module.parts["up"].shape[0], *module.parts["down"].shape[1:])
        if not is_per_row(module.parts, shape):
            raise NoPlace(adapter, module.path, format, ROWS)
        component, _, path = module.path.partition(".")
        wrapped = f"{component}.{PEFT_WRAPPER}{path}" if format == "peft" else module.path
        found[f"{wrapped}.lora_magnitude_vector"] = by_peft(magnitude)
    if format in _PEFT:
        plain = [module.path for module in adapter.modules]
        _require_whole(adapter, plain, [module.path for module in modules], format)
    return found


def _require_whole(
    adapter: Adapter, plain: Iterable[str], kept: Iterable[str], format: str
) -> None:
    """Refuse a network some of whose modules have magnitudes: readers would make up the others."""
    networks = {path.partition(".")[0] for path in kept}
    lacking = [path for path in plain if path.partition(".")[0] in networks]
    if lacking:
        raise NoPlace(adapter, lacking[0], format, "all modules of a network with one, or none")
