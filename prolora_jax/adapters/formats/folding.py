"""Scales multiplied into the factors, for files that have no field for them.

A product of a factor and a scale is rounded to the file's dtype, and 16 bits have few small
numbers: a scale of 1/64 on an up factor near 1e-4 would cost a tenth of the update. So the product
is first balanced between both factors by powers of two, which round nothing, and where 16 bits
still do not hold the update to their own rounding the module gets 32.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.errors import AdapterRefused, Refusal

_log = logging.getLogger(__name__)

# Unit roundoff by dtype: the largest relative error of one rounded number.
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
_SINGLE = np.dtype(np.float32)
_SURELY = 0.9
_CANCELLED = 1e-3
"""Share of what its columns have one by one, below which an update is looked at in float64."""
_LEAST, _MOST = 1e-20, 1e30
"""Squares that float32 certainly holds, with those of what is lost."""

Pair = tuple[np.ndarray, np.ndarray]


def fold_scales(adapter: Adapter) -> Adapter:
    """The same updates with scale 1; modules whose scale is 1 keep their factors bit for bit.

    Args:
        adapter: any adapter.

    Returns:
        The adapter without alphas.

    Raises:
        AdapterRefused: a scaled factor does not fit its dtype, nor float32.
    """
    modules = tuple(folded(module, adapter.origin) for module in adapter.modules)
    pairs = zip(adapter.modules, modules, strict=True)
    wider = [new.path for old, new in pairs if new.up.dtype != old.up.dtype]
    if wider:
        _log.warning(
            "%s: %d modules, first %s, are written in float32: their own dtype does not hold the "
            "update with its scale folded in",
            adapter.origin,
            len(wider),
            wider[0],
        )
    return replace(adapter, modules=modules)


def with_one_alpha(modules: Sequence[LoraModule], origin: str) -> tuple[float, list[LoraModule]]:
    """The commonest alpha, and modules that have it: of others the rest of the scale is folded.

    Args:
        modules: of one adapter.
        origin: the file, for messages.

    Raises:
        AdapterRefused: a scaled factor does not fit its dtype, nor float32.
    """
    wanted = [module.scale * module.rank for module in modules]
    counts = Counter(alpha for alpha in wanted if alpha != 0.0)
    alpha = counts.most_common(1)[0][0] if counts else 1.0
    made = []
    for module, own in zip(modules, wanted, strict=True):
        rest = own / alpha
        if not math.isclose(rest, 1.0, rel_tol=1e-12):
            module = folded(replace(module, alpha=rest * module.rank), origin)
        made.append(module)
    return float(alpha), made


def without_sign(module: LoraModule) -> LoraModule:
    """The same update with a scale that is not negative; a sign rounds nothing."""
    if module.alpha is None or module.alpha >= 0:
        return module
    return replace(module, up=-module.up, alpha=-module.alpha)


def in_own_dtype(module: LoraModule) -> LoraModule:
    """Factors that were made of another algorithm's update, in its file's dtype if that holds them.

    Args:
        module: any module; one of plain LoRA stays as it is, and so do wide ones.
    """
    if module.made_from is None or module.dtype.name not in ROUNDOFF:
        return module
    matrices = layout.up_to_matrix(module.up), layout.down_to_matrix(module.down)
    found = rounded(*matrices, module.dtype)
    if found is None:
        return module
    shapes = module.up.shape, module.down.shape
    new_up, new_down = (a.reshape(s) for a, s in zip(found, shapes, strict=True))
    return replace(module, up=new_up, down=new_down)


def rounded(
    up: np.ndarray, down: np.ndarray, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray] | None:
    """Two factors in a dtype, if it holds their product to its own rounding.

    Args:
        up: `(out, rank)`, float64 or float32.
        down: `(rank, in)`, the same.
        dtype: of the result.

    Returns:
        Up and down, whose columns may have changed places with each other by powers of two; None
        where numbers are too large or too small for the dtype.
    """
    for balanced in (False, True):
        wide = up, down
        if balanced:
            power = _balance(up, down)
            wide = np.ldexp(_double(up), power), np.ldexp(_double(down), -power[:, None])
        with np.errstate(over="ignore", under="ignore"):  # looked at below
            stored = wide[0].astype(dtype), wide[1].astype(dtype)
        if _clearly_hold(stored, wide) or _hold(stored, wide):
            return stored
    return None


def _clearly_hold(stored: Pair, wide: Pair) -> bool:
    """Whether Gram matrices in float32 leave no doubt of `_hold`, in a quarter of its time.

    Rounding to 16 bits costs 0.8 of what is allowed at most, when what both factors lose is added
    up; float32 is sure of it to `_SURELY`, as long as columns do not cancel each other.
    """
    dtype = stored[0].dtype
    if dtype.itemsize >= 4:
        return False
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        again = stored[0].astype(wide[0].dtype), stored[1].astype(wide[1].dtype)
        lost = _single(again[0] - wide[0]), _single(again[1] - wide[1])
        up, down = _single(wide[0]), _single(again[1])
        of_up, of_down = up.T @ up, down @ down.T
        columns = float(np.diag(of_up) @ np.diag(of_down))
        square = float(np.vdot(of_up, of_down))
        if not _LEAST < _CANCELLED * columns < square < _MOST:
            return False
        apart = max(float(np.vdot(lost[0].T @ lost[0], of_down)), 0.0) ** 0.5
        apart += max(float(np.vdot(of_up, lost[1] @ lost[1].T)), 0.0) ** 0.5
    return apart <= _SURELY * ROUNDOFF[dtype.name] * square**0.5


def _hold(stored: Pair, wide: Pair) -> bool:
    """Whether factors in a dtype hold the product of the wide ones to that dtype's rounding."""
    dtype = stored[0].dtype
    again = _double(stored[0]), _double(stored[1])
    if not all(np.isfinite(factor).all() for factor in again):
        return False
    wide = _double(wide[0]), _double(wide[1])
    # u'd' - ud = (u' - u)d' + u(d' - d): the product itself is not needed for the difference.
    apart = _norm(
        np.hstack([again[0] - wide[0], wide[0]]), np.vstack([again[1], again[1] - wide[1]])
    )
    return apart <= ROUNDOFF[dtype.name] * _size(*wide, dtype)


def folded(module: LoraModule, origin: str) -> LoraModule:
    """One module of `fold_scales`.

    Raises:
        AdapterRefused: a scaled factor does not fit its dtype, nor float32.
    """
    if module.scale == 1.0:
        return replace(module, alpha=None)
    up = layout.up_to_matrix(module.up).astype(np.float64) * module.scale
    down = layout.down_to_matrix(module.down).astype(np.float64)
    own = np.promote_types(module.up.dtype, module.down.dtype)
    for dtype in dict.fromkeys((own, np.promote_types(own, _SINGLE))):
        found = rounded(up, down, dtype)
        if found is not None:
            shapes = module.up.shape, module.down.shape
            new_up, new_down = (a.reshape(s) for a, s in zip(found, shapes, strict=True))
            return replace(module, up=new_up, down=new_down, alpha=None)
    with np.errstate(over="ignore"):
        largest = np.abs(up).max()
    raise AdapterRefused(
        f"{origin}: {module.path}: scale {module.scale:g} times up, at most {largest:.3g}, does "
        f"not fit float32; expected numbers that it can hold; write a kohya format, which keeps "
        f"the scale apart",
        code=Refusal.NON_FINITE,
    )


def _balance(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Powers of two that bring the norms of each column's factors within a factor of 2."""
    up, down = _double(up), _double(down)
    norms = np.linalg.norm(up, axis=0), np.linalg.norm(down, axis=1)
    both = (norms[0] > 0) & (norms[1] > 0)
    ratio = np.divide(norms[1], norms[0], out=np.ones_like(norms[0]), where=both)
    return np.rint(np.log2(ratio) / 2).astype(int)


def _size(up: np.ndarray, down: np.ndarray, dtype: np.dtype) -> float:
    """What an error is compared with: the update, or, in wide dtypes, its columns one by one.

    Columns may cancel each other. In 16 bits that is a reason for 32; there it is as it was.
    """
    if dtype.itemsize < 4:
        return _norm(up, down)
    return float(np.linalg.norm(up, axis=0) @ np.linalg.norm(down, axis=1))


def _double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64, copy=False)


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False)


def _norm(up: np.ndarray, down: np.ndarray) -> float:
    """Frobenius norm of a product, from Gram matrices."""
    return max(float(np.sum((up.T @ up) * (down @ down.T))), 0.0) ** 0.5
