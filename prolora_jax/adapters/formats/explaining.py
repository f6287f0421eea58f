"""Tensors that only others of their file explain: IA3's vector, OFT's blocks, VeRA's matrices."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.algorithms.magnitudes import ROW_MAGNITUDE
from prolora_jax.adapters.formats.keys import Key, split_key
from prolora_jax.adapters.formats.modules import ModuleTensors

_SHARED = frozenset({"vera_A", "vera_B"})


def explained_key(key: str, tensors: Mapping[str, np.ndarray], *, outline: bool) -> Key | None:
    """A key taken apart, with regard to its tensor and to what stands beside it.

    Args:
        key: one of `tensors`.
        tensors: every tensor of the file by key.
        outline: whether the numbers stand for others and say nothing.

    Returns:
        The key; None if it is of no module.
    """
    name, found, end = key.rpartition(".")
    if found and end == "weight" and f"{name}.on_input" in tensors:
        beside = split_key(f"{name}.on_input")
        return None if beside is None else replace(beside, part="ia3_weight")
    if end == "m" and f"{name}.lora_a" in tensors:  # MLX-LM's DoRA
        beside = split_key(f"{name}.lora_a")
        return None if beside is None else replace(beside, part=ROW_MAGNITUDE)
    known = split_key(key)
    if known is None:
        return None
    array = tensors[key]
    if known.part == "oft_blocks" and array.ndim == 4:
        return replace(known, part="boft_blocks")
    if known.part != "diff":
        return known
    # A vector is no full difference, but a norm's or a bias's; zeros are none at all.
    with np.errstate(invalid="ignore"):  # signalling NaNs of bfloat16 warn, and are refused later
        is_none = array.ndim == 1 or not (outline or array.any())
    return None if is_none else known


def completed(
    groups: Mapping[str, ModuleTensors], *, outline: bool = False
) -> dict[str, ModuleTensors]:
    """The modules of a file, each with the tensors that it shares with others.

    Args:
        groups: tensors by module, as their keys say.
        outline: whether the numbers stand for others and say nothing.

    Returns:
        Without what is no module of its own; numbers that say how a vector is meant are floats,
        NaN where they are not known.
    """
    shared = {path: group for path, group in groups.items() if group.parts.keys() <= _SHARED}
    if not any("vera_lambda_b" in group.parts for group in groups.values()):
        shared = {}  # they are refused as what they are: half of something
    modules = {path: group for path, group in groups.items() if path not in shared}
    for path, group in modules.items():
        if "vera_lambda_b" in group.parts or "vera_lambda_d" in group.parts:
            own = [g for other, g in shared.items() if _component(other) == _component(path)]
            for given in own or list(shared.values())[:1]:
                group.parts |= given.parts
        if "on_input" in group.parts and "ia3_weight" in group.parts:
            array, key = group.parts["on_input"]
            floats = group.parts["ia3_weight"][0].dtype
            said = np.full(array.shape, np.nan) if outline else np.asarray(array != 0)
            group.parts["on_input"] = said.astype(floats), key
    return modules


def _component(path: str) -> str:
    return path.partition(".")[0]
