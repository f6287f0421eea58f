"""Several adapters as one: the weighted sum of their updates, exact, as factors side by side.

Every arm is linear in the update, so the sum of migrated adapters is the migrated sum. Its rank is
the sum of their ranks; `--rank` cuts that.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

import numpy as np

from prolora_jax.adapters.adapter import Adapter, Companion, LoraModule
from prolora_jax.adapters.formats.header_strings import as_plain_lora
from prolora_jax.adapters.formats.parsing import same_array
from prolora_jax.adapters.formats.saved_layers import as_layers
from prolora_jax.errors import AdapterRefused, Refusal, UsageError

TITLE = "modelspec.title"


def combine(adapters: Sequence[Adapter], weights: Sequence[float] = ()) -> Adapter:
    """The adapter whose update is `sum of weight * update`, module by module.

    Args:
        adapters: at least one, resolved against one base model; a module that only some have gets
            the sum over these.
        weights: one each; 1 for all when empty.

    Returns:
        Factors in float32 (float64, where an input has them), scales and weights in `up`, no
        alpha; key convention of the first adapter; the header strings that all have alike.

    Raises:
        UsageError: there are not as many weights as adapters, or one is not finite; or a module
            has a magnitude beside its factors.
        AdapterRefused: tensors that are carried along have different numbers in two of them, or
            vectors that are added up different lengths.
    """
    weights = tuple(weights) or (1.0,) * len(adapters)
    if len(weights) != len(adapters):
        raise UsageError(
            f"found {len(weights)} weights for {len(adapters)} adapters; expected one for each, "
            "or none: then each counts 1",
            code=Refusal.BAD_OPTION,
        )
    if not np.isfinite(weights).all():
        raise UsageError(
            f"weights {', '.join(map(str, weights))}: expected finite numbers",
            code=Refusal.BAD_OPTION,
        )
    for adapter in adapters:
        _require_no_gains(adapter)
    parts: dict[str, list[LoraModule]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for module in adapter.modules:
            parts.setdefault(module.path, []).append(_weighted(module, weight))
    return Adapter(
        tuple(_side_by_side(listed) for listed in parts.values()),
        adapters[0].format,
        _extras(adapters),
        _plain(adapters, _metadata(adapters)),
        " + ".join(adapter.origin for adapter in adapters),
        _companions(adapters, weights),
    )


def _require_no_gains(adapter: Adapter) -> None:
    """Refuse what has magnitudes beside its factors: two of them are no sum of anything."""
    kept = [m.path for m in adapter.modules if m.made_from and m.made_from.gains is not None]
    if kept:
        raise UsageError(
            f"{adapter.origin}: {kept[0]}: found a magnitude of DoRA, as --dora keep leaves it; "
            "expected plain factors, which can be added up; merge with --dora fold",
            code=Refusal.BAD_OPTION,
        )


def _weighted(module: LoraModule, weight: float) -> LoraModule:
    dtype = np.result_type(np.float32, *(f.dtype for f in (module.up, module.down) if _is_known(f)))
    up = module.up.astype(dtype) * np.asarray(weight * module.scale, dtype)
    return replace(module, down=module.down.astype(dtype), up=up, alpha=None, made_from=None)


def _is_known(factor: np.ndarray) -> bool:
    """Whether NumPy itself knows the dtype; those of ml_dtypes are all narrower than float32."""
    return factor.dtype.kind == "f"


def _side_by_side(modules: Sequence[LoraModule]) -> LoraModule:
    first, axes = modules[0], max(module.down.ndim for module in modules)
    downs = [_with_axes(module.down, axes) for module in modules]
    ups = [_with_axes(module.up, axes) for module in modules]
    return replace(first, down=np.concatenate(downs, axis=0), up=np.concatenate(ups, axis=1))


def _with_axes(factor: np.ndarray, axes: int) -> np.ndarray:
    """A pointwise convolution may be written with two axes or with four."""
    return factor.reshape(factor.shape + (1,) * (axes - factor.ndim))


def _companions(adapters: Sequence[Adapter], weights: Sequence[float]) -> tuple[Companion, ...]:
    """Vectors of one layer added up, as its factors are; the others, which nothing moves, once."""
    found: dict[tuple[str, str], Companion] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for companion in as_layers(adapter.companions):
            if companion.part == "rows":
                raise AdapterRefused(
                    f"{adapter.origin}: {companion.key}: found whole rows of an embedding, which "
                    f"cannot be added up; expected adapters without them; migrate them apart",
                    code=Refusal.UNSUPPORTED_ALGORITHM,
                )
            if companion.part not in {"bias", "weight"}:
                found.setdefault((companion.key, companion.part), companion)
                continue
            place, added = (companion.path, companion.part), weight * _wide(companion.array)
            known = found.get(place)
            if known is not None and known.array.shape != added.shape:
                raise AdapterRefused(
                    f"{adapter.origin}: {companion.key}: found {added.shape[0]} numbers, and "
                    f"{known.array.shape[0]} in another of the adapters; expected as many, since "
                    f"they are added up; migrate the two apart",
                    code=Refusal.SHAPE_MISMATCH,
                )
            total = added if known is None else known.array + added
            found[place] = replace(known or companion, array=total)
    return tuple(
        replace(c, array=c.array.astype(np.float32)) if c.part in {"bias", "weight"} else c
        for c in found.values()
    )


def _wide(vector: np.ndarray) -> np.ndarray:
    return vector.astype(np.float64)


def _extras(adapters: Sequence[Adapter]) -> Mapping[str, np.ndarray]:
    found: dict[str, tuple[str, np.ndarray]] = {}
    for adapter in adapters:
        for key, array in adapter.extras.items():
            origin, known = found.setdefault(key, (adapter.origin, array))
            if not same_array(known, array):
                raise AdapterRefused(
                    f"{adapter.origin}: {key}: found other numbers than in {origin}; expected "
                    "tensors that are no LoRA factors to be alike, since they cannot be added up; "
                    "migrate the two apart",
                    code=Refusal.DUPLICATE_KEY,
                )
    return {key: array for key, (_, array) in found.items()}


def _plain(adapters: Sequence[Adapter], metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Of a sum of factors, whatever they were made from."""
    made = any(m.made_from is not None for adapter in adapters for m in adapter.modules)
    return as_plain_lora(metadata) if made else metadata


def _metadata(adapters: Sequence[Adapter]) -> Mapping[str, str]:
    counts = Counter(item for adapter in adapters for item in adapter.metadata.items())
    alike = {key: text for (key, text), n in counts.items() if n == len(adapters)}
    titles = [a.metadata.get(TITLE) or PurePath(a.origin).stem for a in adapters]
    return (
        alike | {TITLE: ", ".join(titles)} if any(TITLE in a.metadata for a in adapters) else alike
    )
