"""An `Adapter` to tensors under the keys of one format."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats import (
    comfyui,
    diffusers,
    flax_keys,
    gguf,
    kohya,
    maxdiffusion,
    mlx,
    peft,
    trees,
)
from prolora_jax.adapters.formats.companion_keys import companion_tensors
from prolora_jax.adapters.formats.components import is_clip_layer
from prolora_jax.adapters.formats.expert_parameters import ParameterTensors, parameters_of
from prolora_jax.adapters.formats.folding import fold_scales
from prolora_jax.adapters.formats.header_strings import trained_with
from prolora_jax.adapters.formats.keys import (
    FORMATS,
    GGUF_FACTS,
    LM_BARE,
    LM_FORMATS,
    MLX_CONFIG,
    TRANSFORMER_FORMATS,
    TREE_CONFIG,
    TREE_FORMATS,
)
from prolora_jax.adapters.formats.lora_config import HEADER_KEY, kept_fields
from prolora_jax.adapters.formats.magnitude_keys import magnitude_tensors, without_magnitudes
from prolora_jax.adapters.formats.original_layers import (
    ORIGINAL,
    in_parts,
    original_paths,
    with_original_layers,
)
from prolora_jax.adapters.formats.own_keys import own_tensors
from prolora_jax.adapters.formats.plain_scale import spent_strings
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.adapters.formats.vllm import configured, for_vllm, require_pairs_alone
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.dit.spellings import said_component
from prolora_jax.architectures.llm.names import LM, without_head
from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal, UsageError

Tensors = dict[str, np.ndarray]
Reader = Literal["vllm"]
"""Programs that read less of a folder of peft's than peft does."""

# Formats with the same names of text encoders and of their modules.
_NAMING = {
    **dict.fromkeys(("kohya-ldm", "kohya-diffusers", "maxdiffusion"), "kohya"),
    **dict.fromkeys(("diffusers", "diffusers-old", "peft", "flax"), "diffusers"),
    "comfyui": "comfyui",
}

SAME = ("same", "lora")
"""Choices that keep the names of an input; `lora` writes LoRA factors for all of its modules."""


def dump(
    adapter: Adapter,
    format: str,
    spec: BaseModelSpec,
    *,
    folded: bool = False,
    reader: Reader | None = None,
) -> tuple[Tensors, Mapping[str, str]]:
    """Write an adapter's tensors under the keys of `format`.

    The update of each module stays the same number. Formats that have a field for the scale keep
    the factors bit for bit; elsewhere it is multiplied into them (`folding`, docs/formats.md).

    Args:
        adapter: resolved, or resolvable against `spec`.
        format: one of `FORMATS`.
        spec: the base model the adapter is for; it knows the names.
        folded: whether scales go into the factors where the format has a field for them, too: a
            single file of peft's has none.
        reader: the program that a folder of peft's is for, where it reads less than peft.

    Returns:
        Tensors by key, and the header strings.

    Raises:
        UsageError: there is no such format.
        AdapterRefused: a module is not in `spec`, its scale does not fit its dtype, nobody reads
            language models' adapters in this format, or a text encoder beside a transformer would
            get another's name.
    """
    require_format(format)
    given, spec = in_parts(resolve(adapter, spec), spec), spec.in_parts
    given = resolve(given, spec)
    _require_reader(given, format, spec, folded=folded)
    transformer = bool(spec.layer_names.components)
    if transformer and folded and format == "peft":
        format = "diffusers"  # a single file of peft's is read by nobody there
    if reader == "vllm":
        given = for_vllm(given, spec)
    given = replace(given, modules=tuple(_shaped(m, spec) for m in given.modules))
    if transformer and format in ORIGINAL:
        given = with_original_layers(given, spec)
    magnitudes = magnitude_tensors(given, format, spec)
    adapter = without_magnitudes(given)
    adapter = replace(adapter, modules=tuple(_shaped(m, spec) for m in adapter.modules))
    # No field for the scale, or one that readers of a transformer's adapter pass over.
    if folded or format in {"diffusers", "diffusers-old"} or (transformer and format == "comfyui"):
        adapter = fold_scales(adapter)
    # A server has the whole model, whatever an adapter was trained on.
    bare = LM_BARE in adapter.metadata and reader is None
    level = without_head(spec.lm_level) if bare else spec.lm_level
    parameters, routers = (), ()
    if format == "peft" and not folded:
        kept = kept_fields(adapter.metadata)
        adapter, parameters, routers = parameters_of(adapter, spec, kept)
    own = own_tensors(adapter, format, spec, folded=folded)
    header = header_strings(adapter, format)
    if format == "mlx":
        tensors, header[MLX_CONFIG] = mlx.dump_tensors(adapter, spec)
    elif format == "gguf":
        tensors, header[GGUF_FACTS] = gguf.dump_tensors(adapter, spec)
    elif format in TREE_FORMATS:
        tensors, header[TREE_CONFIG] = trees.dump_tensors(adapter, format, spec)
    else:
        tensors = _tensors(adapter, format, spec, parameters) | magnitudes | own
    if format == "peft":
        dora = frozenset(module.path for module in given.structured if magnitudes)
        said = peft.configuration(adapter, dora, parameters, routers, level)
        header |= {HEADER_KEY: configured(said, adapter, spec) if reader == "vllm" else said}
    tensors |= companion_tensors(adapter, format, spec)
    return peft.inside(tensors, level) if format == "peft" else tensors, header


def header_strings(adapter: Adapter, format: str) -> dict[str, str]:
    """The header strings of `dump`, without a configuration of peft's.

    Args:
        adapter: its ranks and scales, as they are written, and its own strings.
        format: one of `FORMATS`.
    """
    # The configuration is spent: its scale is in each module's alpha, and of another rank it
    # would be wrong.
    own = {HEADER_KEY, MLX_CONFIG, GGUF_FACTS, TREE_CONFIG, LM_BARE}
    spent = own | spent_strings(adapter.metadata)
    metadata = {key: text for key, text in adapter.metadata.items() if key not in spent}
    metadata |= trained_with(adapter)
    torch = format in {"diffusers", "diffusers-old", "peft"}
    if torch and metadata.get("format") == "mlx":
        metadata["format"] = "pt"
    return {"format": "pt"} | metadata if torch else metadata


def _tensors(
    adapter: Adapter, format: str, spec: BaseModelSpec, parameters: Sequence[ParameterTensors]
) -> Tensors:
    match format:
        case "diffusers" | "diffusers-old":
            return diffusers.dump_tensors(adapter, old=format == "diffusers-old")
        case "comfyui":
            return comfyui.dump_tensors(adapter, spec)
        case "peft":
            return peft.dump_tensors(adapter, parameters)
        case "flax":
            return flax_keys.dump_tensors(adapter)
        case "maxdiffusion":
            return maxdiffusion.dump_tensors(adapter, spec)
    return kohya.dump_tensors(adapter, spec, ldm=format == "kohya-ldm")


def key_names(adapter: Adapter, format: str, spec: BaseModelSpec) -> frozenset[str]:
    """What `dump` would call the modules, without touching a number.

    Args:
        adapter: resolved against `spec`.
        format: one of `FORMATS`.
        spec: the base model it is for.

    Raises:
        AdapterRefused: the format has no name for a module.
    """
    paths = frozenset(module.path for module in (*adapter.modules, *adapter.structured))
    if format in ORIGINAL:
        paths = original_paths(adapter, spec)
    if format == "comfyui":
        return frozenset(comfyui.module_name(path, spec, adapter.origin) for path in paths)
    if format not in {"kohya-ldm", "kohya-diffusers", "maxdiffusion"}:
        return paths
    ldm = format == "kohya-ldm" or (format == "maxdiffusion" and spec.is_sdxl_family)
    return frozenset(kohya.module_name(path, spec, ldm, adapter.origin) for path in paths)


def require_format(format: str) -> None:
    """Check the name of a format.

    Raises:
        UsageError: there is no such format.
    """
    known = dict.fromkeys((*FORMATS, *LM_FORMATS))
    if format not in known:
        raise UsageError(
            f"format {format!r} is unknown; expected one of {', '.join(known)}",
            code=Refusal.BAD_OPTION,
        )


def concrete_format(choice: str, adapter: Adapter, spec: BaseModelSpec) -> str:
    """The format behind a choice of the command line.

    Args:
        choice: `same`, `lora`, `kohya`, or one of `FORMATS`.
        adapter: what is written, resolved against `spec`.
        spec: the base model that the output is for.

    Returns:
        For `same` and `lora` the adapter's own, for `kohya` what its trainer writes for this
        base: LDM block names for SDXL's family, diffusers block names for SD 1 and 2. Where LDM
        has no name for one of the modules (`encoder_hid_proj` of Kolors), they are diffusers block
        names, which the readers of either take. A format that was asked for by its name is that
        one. Of a transformer's adapter, `same` and `lora` are peft's for one of peft's and
        diffusers' for every other, which all readers take; `kohya` has the original names.
    """
    if spec.layer_names.components and choice in {*SAME, "kohya"}:
        if choice == "kohya":
            return "kohya-ldm"
        return "peft" if adapter.format == "peft" else "diffusers"
    if choice in SAME:
        chosen = adapter.format
    elif choice == "kohya":
        chosen = "kohya-ldm" if spec.is_sdxl_family else "kohya-diffusers"
    else:
        return choice
    every = (*adapter.modules, *adapter.structured)
    unet = (m.path for m in every if m.path.startswith(UNET))
    if chosen in {"kohya-ldm", "comfyui"} and any(spec.ldm_name(path) is None for path in unet):
        return "kohya-diffusers"
    return chosen


_IN_FOLDERS = {
    "rows": ("whole rows of an embedding", "says of which tokens they are"),
    "saved": ("a whole layer of modules_to_save", "names such layers"),
}
"""Tensors beside the pairs that only a folder of peft's has a place for, and what says so there."""


def require_room(
    adapter: Adapter, format: str, *, folded: bool, reader: Reader | None = None
) -> None:
    """Refuse tensors beside the pairs that an output has no place for.

    Args:
        adapter: with those that come along.
        format: one of `FORMATS`, as it is written.
        folded: whether a file of peft's is written without its configuration.
        reader: the program that it is for.

    Raises:
        AdapterRefused: there is one.
    """
    placed = format == "peft" and not folded
    other = next((c for c in adapter.companions if c.part in _IN_FOLDERS), None)
    if other is not None and not placed:
        what, told = _IN_FOLDERS[other.part]
        raise AdapterRefused(
            f"{adapter.origin}: {other.key}: found {what}, to be written as {format}; expected a "
            f"folder of peft's, whose configuration {told}; name a folder, or leave that behind "
            f"(--exclude '{other.path}')",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )
    if reader == "vllm":
        require_pairs_alone(adapter)


def _require_reader(adapter: Adapter, format: str, spec: BaseModelSpec, *, folded: bool) -> None:
    path = next((m.path for m in (*adapter.modules, *adapter.structured)), "")
    require_room(adapter, format, folded=folded)
    what, readable = "a UNet or a text encoder", FORMATS
    if path.startswith(LM):
        what, readable = "a language model", LM_FORMATS
    elif spec.layer_names.components:
        what, readable = "a transformer", TRANSFORMER_FORMATS
        _require_one_transformer(adapter, format)
        _require_same_text_encoders(adapter, format)
    if format not in readable:
        expected = ", ".join(readable)
        raise AdapterRefused(
            f"{adapter.origin}: {path}: found an adapter of {what}, to be written as {format}; "
            f"expected {expected}, which its readers take; leave the format away or name one",
            code=Refusal.UNMATCHED_MODULES,
        )


def _require_one_transformer(adapter: Adapter, format: str) -> None:
    """Refuse two transformers for a format whose names do not say which of them a layer is of."""
    said = {said_component(m.path) for m in (*adapter.modules, *adapter.structured)} - {None}
    if format in ORIGINAL and len(said) > 1:
        raise AdapterRefused(
            f"{adapter.origin}: found modules of {len(said)} transformers, to be written as "
            f"{format}; expected those of one, since its names do not say which; write format "
            f"diffusers, or give each transformer's folder by itself",
            code=Refusal.UNMATCHED_MODULES,
        )


def _require_same_text_encoders(adapter: Adapter, format: str) -> None:
    """Refuse a text encoder's modules that other names would make another encoder's, or nobody's.

    The second encoder is T5 in a folder of diffusers' and CLIP-G in ComfyUI's and kohya's files, so
    that of CLIP alone the names are known in every format.

    Raises:
        AdapterRefused: there is such a module, and the format has other names than the input's.
    """
    naming = _NAMING.get(adapter.format)
    if naming == _NAMING.get(format):
        return
    every = (m.path for m in (*adapter.modules, *adapter.structured))
    path = next((p for p in every if is_text_encoder(p) and not is_clip_layer(p)), None)
    if path is not None:
        raise AdapterRefused(
            f"{adapter.origin}: {path}: found a module of a text encoder that is no layer of CLIP, "
            f"to be written as {format}; expected a format that calls such an encoder as the "
            f"input does, which is {adapter.format}; write "
            f"{' or '.join(one for one in TRANSFORMER_FORMATS if _NAMING[one] == naming)}",
            code=Refusal.UNMATCHED_MODULES,
        )


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
