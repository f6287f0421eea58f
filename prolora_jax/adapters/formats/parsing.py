"""Tensors of a file to an `Adapter`; each ends in a module, in `extras`, or in a refusal."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, AlphaZero, Companion, LoraModule
from prolora_jax.adapters.algorithms.companions import companion_of, is_scaled
from prolora_jax.adapters.algorithms.foreign import refuse_foreign, refuse_structured
from prolora_jax.adapters.formats import gguf, mlx
from prolora_jax.adapters.formats.explaining import completed, explained_key
from prolora_jax.adapters.formats.keys import LM_BARE, TURNED, Key, is_bare
from prolora_jax.adapters.formats.modules import (
    ModuleTensors,
    is_over_time,
    made_module,
    read_zero,
    require_whole_over_time,
)
from prolora_jax.adapters.formats.plain_scale import header_scale
from prolora_jax.adapters.formats.saved_layers import with_saved
from prolora_jax.adapters.formats.token_rows import with_rows
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.llm.names import LM
from prolora_jax.errors import AdapterRefused, Refusal

_log = logging.getLogger(__name__)

_EMBEDDINGS = "bundle_emb."  # textual inversions packed with an adapter; carried along


def parse(
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    origin: str,
    alpha_zero: AlphaZero = "refuse",
    *,
    outline: bool = False,
    structured: bool = False,
) -> Adapter:
    """Read an adapter, whatever mixture of key conventions it uses.

    Flat UNet names stay flat (`lora_unet_...`) until `resolve` has seen a base model.

    Args:
        tensors: every tensor of the file by key.
        metadata: header strings; `lora_adapter_metadata` gives the scale of diffusers files.
        origin: the file, for messages.
        alpha_zero: what an alpha of 0 means: `rank` reads it as "alpha = rank", as kohya's loader
            and LyCORIS do; `zero` as no effect, as the web interfaces and diffusers do; `refuse`
            refuses the file.
        outline: the tensors stand for others of the same shapes (`io.tensors.outline_tensors`):
            their numbers are not looked at, and no alpha is taken from them.
        structured: whether modules of other algorithms than plain LoRA are taken; who takes them
            makes factors of them (`fitting.fit`) before anything else is done.

    Returns:
        The adapter, factors untouched (but `up` is zero where `alpha_zero` says so), modules in
        the order of `tensors`.

    Raises:
        AdapterRefused: it is no plain LoRA adapter, or is incomplete, contradictory or not
            finite; `code` says which.
    """
    keys = {key: explained_key(key, tensors, outline=outline) for key in tensors}
    unread = [k for k, parts in keys.items() if parts is None and not k.startswith(_EMBEDDINGS)]
    companions = {}
    if any(parts is not None and parts.part != "alpha" for parts in keys.values()):
        told = {key: companion_of(key, tensors[key], outline=outline) for key in unread}
        companions = {key: found for key, found in told.items() if found is not None}
        unread = [key for key in unread if key not in companions]
    refuse_foreign(tensors, unread, origin=origin)
    if not outline:
        _require_finite(tensors, origin)
    _require_one_adapter(keys.values(), origin)

    groups: dict[str, ModuleTensors] = {}
    extras: dict[str, np.ndarray] = {}
    for key, parts in keys.items():
        if parts is None and key not in companions:
            extras[key] = tensors[key]
        elif parts is None:
            continue
        else:
            for own, array in _pieces(parts, tensors[key]):
                group = groups.setdefault(own.path, ModuleTensors(own.format))
                _add(group, own, key, array, origin)
    modules, others, formats = [], [], Counter()
    for path, group in completed(groups, outline=outline).items():
        if set(group.parts) == {"alpha"}:
            array, key = group.parts["alpha"]
            _log.warning("%s: %s belongs to no module; carried along", origin, key)
            extras[key] = array
            continue
        if is_over_time(group):
            require_whole_over_time(path, group, origin)
            read = (Companion(key, path, "layer", array) for array, key in group.parts.values())
            companions |= {companion.key: companion for companion in read}
            continue
        if not structured:
            refuse_structured({name: key for name, (_, key) in group.parts.items()}, origin)
        module = made_module(path, group, metadata, origin, alpha_zero)
        if isinstance(module, LoraModule):
            modules.append(module)
        else:
            others.append(module)
        formats[is_text_encoder(path), group.format] += 1
    if not modules and not others:
        raise AdapterRefused(
            f"{origin}: not-an-adapter:no-modules: found {len(tensors)} tensors and no LoRA "
            f"module; expected pairs of lora_down and lora_up; give an adapter file",
            code=Refusal.NOT_AN_ADAPTER,
        )
    # The majority of the UNet modules, of the text encoder's where there are no others.
    (_, majority), _ = min(formats.items(), key=lambda item: (item[0][0], -item[1]))
    if majority == "diffusers" and any(format == "diffusers-old" for _, format in formats):
        majority = "diffusers-old"  # in which the other layers are spelled as anywhere
    bare = any(path.startswith(LM) for path in groups) and any(map(is_bare, tensors))
    adapter = Adapter(
        tuple(modules),
        majority,
        extras,
        dict(metadata) | ({LM_BARE: "layers"} if bare else {}),
        origin,
        structured=tuple(others),
        outline=outline,
    )
    if not (outline and _has_alphas(groups)):
        adapter = _scaled(adapter, alpha_zero)
    scales = {module.path: module.scale for module in adapter.modules}
    whole = [_whole(c, scales) for c in companions.values()]
    if any(path.startswith(LM) for path in groups):
        whole = [with_saved(c, metadata, origin) for c in whole]
    return replace(adapter, companions=tuple(with_rows(c, metadata, origin) for c in whole))


def _pieces(key: Key, array: np.ndarray) -> Iterable[tuple[Key, np.ndarray]]:
    """The parts of modules that a tensor holds, in torch's layout: one, or one for each expert."""
    if key.part in mlx.PARTS:
        return mlx.pieces(key, array)
    if key.part in gguf.PARTS:
        return gguf.pieces(key, array)
    if key.part in TURNED:
        return [(replace(key, part=TURNED[key.part]), array.T)]
    if key.format == "flax" and array.ndim in {2, 4}:  # anything else is refused later
        array = layout.kernel_to_weight(array)
    return [(key, array)]


def _whole(companion: Companion, scales: Mapping[str, float]) -> Companion:
    """With the scale of its module, where that counts for it."""
    scale = scales.get(companion.path, 1.0)
    if not is_scaled(companion) or scale == 1.0:
        return companion
    return replace(companion, array=(companion.array.astype(np.float64) * scale).astype(np.float32))


def _has_alphas(groups: Mapping[str, ModuleTensors]) -> bool:
    return any("alpha" in group.parts for group in groups.values())


def _scaled(adapter: Adapter, alpha_zero: AlphaZero) -> Adapter:
    """With the scale that stands in plain header strings, where nothing else says one."""
    kohya = adapter.format.startswith(("kohya", "comfyui"))
    told, flags = header_scale(adapter.modules, adapter.metadata, adapter.origin, kohya=kohya)
    for flag in flags:
        _log.warning("%s: %s", adapter.origin, flag)
    adapter = replace(adapter, flags=(*adapter.flags, *flags))
    if told is None:
        return adapter
    modules = (replace(m, alpha=told.alpha_for(m.rank)) for m in adapter.modules)
    read = (m if m.alpha else read_zero(m, alpha_zero, adapter.origin) for m in modules)
    return replace(adapter, modules=tuple(read))


def _add(group: ModuleTensors, key: Key, name: str, array: np.ndarray, origin: str) -> None:
    if key.part in group.parts:
        before, known = group.parts[key.part]
        if not same_array(before, array):
            raise AdapterRefused(
                f"{origin}: {key.path}: found two different {key.part} tensors, {known} and "
                f"{name}; expected one; remove the wrong one",
                code=Refusal.DUPLICATE_MODULE,
            )
        _log.warning("%s: %s repeats %s; one is kept", origin, name, known)
        return
    group.parts[key.part] = (array, name)


def same_array(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays have the same dtype, shape and numbers."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))


def _require_one_adapter(keys: Iterable[Key | None], origin: str) -> None:
    """Refuse a file of several adapters: whose module is whose cannot be kept apart later."""
    names = sorted({key.adapter for key in keys if key is not None and key.adapter is not None})
    if len(names) > 1:
        raise AdapterRefused(
            f"{origin}: found {len(names)} adapters, {', '.join(names[:5])}; expected one; save "
            f"each to a file of its own",
            code=Refusal.DUPLICATE_MODULE,
        )


def _require_finite(tensors: Mapping[str, np.ndarray], origin: str) -> None:
    for key, array in tensors.items():
        if _all_finite(array):
            continue
        with np.errstate(invalid="ignore"):  # signalling NaNs of bfloat16 warn
            finite = np.isfinite(array)
        if not finite.all():
            bad = int(array.size - finite.sum())
            raise AdapterRefused(
                f"{origin}: tensor {key} has {bad} of {array.size} numbers that are NaN or "
                f"infinite; expected finite numbers; fetch or train the adapter again",
                code=Refusal.NON_FINITE,
            )


def _all_finite(array: np.ndarray) -> bool:
    """Whether every number is finite, for dtypes whose bits say it faster than `isfinite` does.

    False may also mean that it has to be looked at. Every file is checked, and for float16 the
    bits take a fifth of the time: infinite and NaN are the numbers with the largest exponent.
    """
    largest = _INFINITE_BITS.get(array.dtype)
    if largest is None or array.size == 0:
        return False
    return int((array.view(np.uint16) & 0x7FFF).max()) < largest


_INFINITE_BITS = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}
