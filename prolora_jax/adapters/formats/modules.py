"""The tensors of one module: plain LoRA factors, the parts of another algorithm, or a refusal."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

from prolora_jax.adapters.adapter import AlphaZero, LoraModule, StructuredModule
from prolora_jax.adapters.algorithms.algorithm import lacks_axes, shapes_of
from prolora_jax.adapters.algorithms.lokr import is_full
from prolora_jax.adapters.algorithms.table import (
    PLAIN_PARTS,
    algorithm_reading,
    nearest_algorithm,
)
from prolora_jax.adapters.formats.gguf import alpha_of
from prolora_jax.adapters.formats.keys import Part
from prolora_jax.adapters.formats.lora_config import (
    alpha_by_config,
    rank_by_config,
    require_same_kind,
    settings_of,
)
from prolora_jax.adapters.formats.mlx import scale_of
from prolora_jax.errors import AdapterRefused, Refusal

_FLOATS = frozenset(
    np.dtype(dtype) for dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
)


@dataclass
class ModuleTensors:
    """What a file has for one module, and where: array and key by part."""

    format: str
    parts: dict[Part, tuple[np.ndarray, str]] = field(default_factory=dict)


def is_over_time(group: ModuleTensors) -> bool:
    """Whether a pair is of a convolution over time and pixels, as a video model's first layer.

    No base model's spec has such a layer, so that its pair is treated as a whole layer is: it is
    left behind where that is allowed.
    """
    return group.parts.keys() <= PLAIN_PARTS and any(a.ndim == 5 for a, _ in group.parts.values())


def require_whole_over_time(path: str, group: ModuleTensors, origin: str) -> None:
    """Refuse what is no whole pair over time: damage is no layer that may be left behind.

    Args:
        path: of the layer.
        group: its tensors, of which `is_over_time` is true.
        origin: the file, for messages.

    Raises:
        AdapterRefused: a factor is missing, or is none by its dtype or shape.
    """
    _pair(path, group, origin, axes=5)
    if "alpha" in group.parts:
        _scalar(*group.parts["alpha"], path, origin)


def made_module(
    path: str, group: ModuleTensors, metadata: Mapping[str, str], origin: str, alpha_zero: AlphaZero
) -> LoraModule | StructuredModule:
    """The module that a file's tensors are.

    Args:
        path: of the layer.
        group: its tensors.
        metadata: header strings of the file, for the scale.
        origin: the file, for messages.
        alpha_zero: what an alpha of 0 means.

    Raises:
        AdapterRefused: a part is missing, or too much, or is no factor by its dtype or shape.
    """
    if not group.parts.keys() <= PLAIN_PARTS:
        return _structured(path, group, metadata, origin, alpha_zero)
    down, up = _pair(path, group, origin)
    require_same_kind(path, None, metadata, origin)
    alpha = _alpha_beside(path, down.shape[0], group, metadata, origin)
    if "alpha" in group.parts:
        alpha = _scalar(*group.parts["alpha"], path, origin)
    if alpha == 0:
        return read_zero(LoraModule(path, down, up), alpha_zero, origin)
    return LoraModule(path, down, up, alpha)


def _pair(
    path: str, group: ModuleTensors, origin: str, axes: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Both factors of a linear layer, or of a convolution whose kernel has so many axes."""
    pair: tuple[tuple[Part, Part], ...] = (("down", "up"), ("up", "down"))
    for half, other in pair:
        if half not in group.parts:
            raise AdapterRefused(
                f"{origin}: {path}: the {half} factor is missing, found only "
                f"{group.parts[other][1]}; expected both; fetch the file again",
                code=Refusal.INCOMPLETE_PAIR,
            )
    (down, _), (up, _) = group.parts["down"], group.parts["up"]
    _require_floats(group, origin)
    if not _fit(down, up, axes):
        kernel, ones = ("kh, kw", "1, 1") if axes == 4 else ("kt, kh, kw", "1, 1, 1")
        raise AdapterRefused(
            f"{origin}: {path}: found down of shape {down.shape} and up of shape {up.shape}; "
            f"expected (rank, in[, {kernel}]) and (out, rank[, {ones}]) of one rank; fetch the "
            f"file again",
            code=Refusal.SHAPE_MISMATCH,
        )
    return down, up


def _alpha_beside(
    path: str, rank: int, group: ModuleTensors, metadata: Mapping[str, str], origin: str
) -> float | None:
    """The alpha that a configuration gives a module; MLX-LM's has the scale itself."""
    if group.format == "mlx":
        return scale_of(metadata, origin) * rank
    if group.format == "gguf":
        return alpha_of(metadata, rank, origin)
    return alpha_by_config(path, rank, metadata, origin)


def read_zero(module: LoraModule, alpha_zero: AlphaZero, origin: str) -> LoraModule:
    """The module without its alpha of 0: no file that is written from it is read in two ways.

    Raises:
        AdapterRefused: nobody has said what it means.
    """
    if alpha_zero == "rank":
        return replace(module, alpha=float(module.rank))
    if alpha_zero == "zero":
        return replace(module, up=np.zeros_like(module.up), alpha=None)
    raise AdapterRefused(_disputed(module.path, origin), code=Refusal.ALPHA_ZERO)


def _disputed(path: str, origin: str) -> str:
    return (
        f"{origin}: {path}: found alpha 0, which some programs read as no effect and others "
        f"as alpha = rank; expected another number; set it to what was meant, or say it with "
        f"--alpha-zero rank or --alpha-zero zero"
    )


def _fit(down: np.ndarray, up: np.ndarray, axes: int) -> bool:
    if down.ndim not in {2, axes} or up.ndim not in {2, axes} or 0 in (*down.shape, *up.shape):
        return False
    return down.shape[0] == up.shape[1] and set(up.shape[2:]) <= {1}


def _scalar(array: np.ndarray, key: str, path: str, origin: str) -> float:
    if array.size != 1:
        raise AdapterRefused(
            f"{origin}: {path}: found {key} of shape {array.shape}; expected one number; fetch "
            f"the file again",
            code=Refusal.SHAPE_MISMATCH,
        )
    return float(array.reshape(()))


def _structured(
    path: str, group: ModuleTensors, metadata: Mapping[str, str], origin: str, alpha_zero: AlphaZero
) -> StructuredModule:
    """The module of another algorithm, with all its parts."""
    _require_floats(group, origin)
    parts = {name: array for name, (array, _) in group.parts.items() if name != "alpha"}
    names = frozenset(parts)
    algorithm = algorithm_reading(names)
    if algorithm is None or lacks_axes(parts):
        near = algorithm or nearest_algorithm(names)
        assert near is not None  # its parts are those of some algorithm
        wanted = " or ".join(", ".join(sorted(needed)) for needed in near.least[:2])
        raise AdapterRefused(
            f"{origin}: {path}: found {shapes_of(parts)}; expected the tensors of one algorithm, "
            f"as {wanted} of {near.title}; fetch the file again",
            code=Refusal.INCOMPLETE_PAIR,
        )
    require_same_kind(path, algorithm.name, metadata, origin)
    settings = settings_of(path, metadata, origin)
    alpha = _alpha_beside(path, algorithm.rank(parts), group, metadata, origin)
    if alpha is not None and is_full(parts):  # an alpha for a rank of 1, which it has here
        alpha /= rank_by_config(path, metadata, origin)
    if "alpha" in group.parts:
        alpha = _scalar(*group.parts["alpha"], path, origin)
    if alpha == 0 and algorithm.zero_alpha_is_disputed:
        if alpha_zero == "refuse":
            raise AdapterRefused(_disputed(path, origin), code=Refusal.ALPHA_ZERO)
        alpha = float(algorithm.rank(parts)) if alpha_zero == "rank" else 0.0
    module = StructuredModule(path, algorithm.name, parts, alpha, settings)
    lack = algorithm.unusable(module)
    if lack is not None:
        raise AdapterRefused(
            f"{origin}: {path}: unsupported-algorithm:{algorithm.title}: found {lack.found}; "
            f"expected {lack.expected}; or merge it and extract a plain LoRA first",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )
    return module


def _require_floats(group: ModuleTensors, origin: str) -> None:
    for name, (array, key) in group.parts.items():
        if name != "alpha" and array.dtype not in _FLOATS:
            raise AdapterRefused(
                f"{origin}: tensor {key} has dtype {array.dtype.name}; expected float16, "
                f"bfloat16, float32 or float64; convert the file to one of these",
                code=Refusal.UNSUPPORTED_DTYPE,
            )
