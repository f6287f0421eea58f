"""Which modules of a file are packed, and how, from names and dtypes alone.

Wherever there is doubt a model is refused: numbers without their scales look like a weight.
"""

from collections.abc import Iterable

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.containers.packed.bitsandbytes import BITSANDBYTES
from prolora_jax.io.containers.packed.fp8 import FP8_SCALED
from prolora_jax.io.containers.packed.integer_groups import INTEGER_GROUPS
from prolora_jax.io.containers.packed.packed_weight import REMEDY, PackedModule, Packing
from prolora_jax.io.containers.packed.refusals import REFUSED
from prolora_jax.io.containers.packed.tensor_subclasses import TENSOR_SUBCLASSES

PACKINGS = (*BITSANDBYTES, FP8_SCALED, INTEGER_GROUPS, *TENSOR_SUBCLASSES)
"""Every packing that is read; the first one whose mark is there, in the right dtype, it is."""

_ENDS = frozenset({"weight"}).union(*REFUSED, *(packing.ends for packing in PACKINGS))
_MARKS = {ends[0] for ends in REFUSED}.union(*(packing.marks for packing in PACKINGS))
_DEEPEST = max(end.count(".") for end in _ENDS) + 1


def modules_in(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """The tensors that a packing may have, by module and by the end of their names.

    Args:
        keys: of all tensors.

    Returns:
        Key by end by module, of every module that has a mark of some packing; and of every other
        one its `weight` alone.
    """
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        levels = key.split(".")
        for count in range(min(_DEEPEST, len(levels) - 1), 0, -1):
            end = ".".join(levels[-count:])
            if end in _ENDS:
                found.setdefault(".".join(levels[:-count]), {})[end] = key
                break
    return {
        name: ends if ends.keys() & _MARKS else {"weight": ends["weight"]}
        for name, ends in found.items()
        if ends.keys() & _MARKS or "weight" in ends
    }


def packing_of(module: PackedModule) -> Packing | None:
    """How a module is packed; None where its weight stands for itself.

    Raises:
        BaseModelError: in a way that is not read, or parts of it are missing.
    """
    for ends, who in REFUSED.items():
        if module.parts.keys() >= {*ends}:
            raise module.refusal(
                f"{ends[0]}, a packing of {who}",
                f"one of {', '.join(p.name for p in PACKINGS)}",
                "give the model in one of these, or one whose weights are not packed",
                Refusal.UNSUPPORTED_DTYPE,
            )
    marked = [p for p in PACKINGS if not module.parts.keys().isdisjoint(p.marks)]
    for packing in marked:
        numbers = module.parts.get(packing.numbers)
        if numbers is not None and numbers.dtype.name in packing.dtypes:
            _require_all(module, packing)
            return packing
    weight = module.parts.get("weight")
    if marked:
        names = " or ".join(sorted({dtype for p in marked for dtype in p.dtypes}))
        found = "no numbers" if weight is None else f"{weight.dtype.name} numbers"
        beside = sorted(module.parts.keys() - {"weight"})
        raise module.refusal(
            f"{found} beside {', '.join(beside)}", f"{marked[0].numbers} of {names}", REMEDY
        )
    if weight is not None and weight.dtype.kind in "iu" and len(weight.shape) > 1:
        raise module.refusal(
            f"{weight.dtype.name} numbers and nothing that says what they stand for",
            "scales beside them",
            REMEDY,
            Refusal.UNSUPPORTED_DTYPE,
        )
    return None


def require_scales(origin: str, scaled: str | None, unscaled: Iterable[str]) -> None:
    """Refuse floats of 8 bits without a scale where others have one.

    Args:
        origin: the file or folder.
        scaled: what says that 8-bit floats have scales; None where nothing does.
        unscaled: modules whose weights have 8 bits and no scales.

    Raises:
        BaseModelError: there are such.
    """
    missing = sorted(unscaled)
    if scaled is not None and missing:
        raise BaseModelError(
            f"{origin}: {missing[0]}: found 8-bit floats without a scale ({len(missing)} such "
            f"weights); expected one beside each, since the model has {scaled}; {REMEDY}",
            code=Refusal.UNREADABLE_BASE,
        )


def _require_all(module: PackedModule, packing: Packing) -> None:
    for group in packing.needs:
        if module.one_of(group) is None:
            raise module.refusal(
                f"{', '.join(sorted(module.parts))} and no {' or '.join(group)}",
                f"all tensors of a weight packed as {packing.name}",
                REMEDY,
            )
