"""A merged adapter in its migration: what it is made of, and what its dtype is."""

from collections.abc import Sequence
from dataclasses import replace

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.report import MergedPart


def parts_of(adapters: Sequence[Adapter], weights: Sequence[float]) -> tuple[MergedPart, ...]:
    """What a combined adapter is made of, for its report."""
    weights = tuple(weights) or (1.0,) * len(adapters)
    pairs = zip(adapters, weights, strict=True)
    return tuple(MergedPart(one.origin, one.fingerprint, float(weight)) for one, weight in pairs)


def widest(options: MigrationOptions, adapters: Sequence[Adapter]) -> MigrationOptions:
    """The same options; a dtype of `same` becomes the widest that the adapters have."""
    if options.dtype != "same":
        return options
    dtypes = {str(m.dtype) for adapter in adapters for m in adapter.modules}
    # float16 and bfloat16 hold different numbers: only float32 holds both.
    return replace(options, dtype=dtypes.pop() if len(dtypes) == 1 else "float32")
