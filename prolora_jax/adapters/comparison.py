"""Two adapters side by side, module by module, on factors (no dense update is formed)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, LoraModule


@dataclass(frozen=True)
class ModuleDifference:
    """One module that both adapters have in one shape.

    Attributes:
        norm_a: Frobenius norm of the first update.
        norm_b: of the second.
        cosine: of the two updates as vectors; None when one of them is zero.
        energy: squared norm of the second over that of the first; None when the first is zero.
        difference: norm of (second - first) over the norm of the first; None when that is zero.
    """

    norm_a: float
    norm_b: float
    cosine: float | None
    energy: float | None
    difference: float | None


@dataclass(frozen=True)
class AdapterComparison:
    """What two adapters have in common.

    Attributes:
        modules: by path, those that both have in one shape.
        only_a: paths of the first alone.
        only_b: paths of the second alone.
        other_shape: paths that both have in different shapes.
        cosine: of the two adapters over all common modules.
        energy: squared norm of the second over that of the first, over all common modules.
    """

    modules: Mapping[str, ModuleDifference]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    other_shape: tuple[str, ...]
    cosine: float | None
    energy: float | None


def compare(a: Adapter, b: Adapter, origins: Mapping[str, str] | None = None) -> AdapterComparison:
    """Compare two adapters by module path.

    Args:
        a: first adapter.
        b: second adapter; both resolved, or both with the names of one flat naming.
        origins: path in `a` by path in `b`, where a migration moved modules to other blocks;
            the comparison has the paths of `b` then.

    Returns:
        The comparison; cost O((out + in) rank^2) a module.
    """
    of_a, of_b = ({module.path: module for module in x.modules} for x in (a, b))
    if origins is None:
        origins = {path: path for path in of_b}
    pairs = {path: of_a[origins[path]] for path in of_b if origins.get(path) in of_a}
    fitting = [path for path in pairs if _shape(pairs[path]) == _shape(of_b[path])]
    used = {module.path for module in pairs.values()}
    products = {path: _inner(pairs[path], of_b[path]) for path in fitting}
    modules = {
        path: _difference(pairs[path].norm, of_b[path].norm, products[path]) for path in fitting
    }
    whole = _difference(
        float(np.linalg.norm([m.norm_a for m in modules.values()])),
        float(np.linalg.norm([m.norm_b for m in modules.values()])),
        sum(products.values()),
    )
    return AdapterComparison(
        modules,
        tuple(path for path in of_a if path not in used),
        tuple(path for path in of_b if path not in pairs),
        tuple(path for path in pairs if path not in modules),
        whole.cosine,
        whole.energy,
    )


def _shape(module: LoraModule) -> tuple[int, int]:
    return module.up.shape[0], int(np.prod(module.down.shape[1:]))


def _inner(a: LoraModule, b: LoraModule) -> float:
    """Inner product of two updates, float64, scales included."""
    down_a, down_b = (layout.down_to_matrix(m.down).astype(np.float64) for m in (a, b))
    up_a, up_b = (layout.up_to_matrix(m.up).astype(np.float64) for m in (a, b))
    return a.scale * b.scale * float(np.sum((up_a.T @ up_b) * (down_a @ down_b.T)))


def _difference(norm_a: float, norm_b: float, inner: float) -> ModuleDifference:
    both, first = norm_a > 0 and norm_b > 0, norm_a > 0
    # |b - a|^2 = |a|^2 + |b|^2 - 2 <a, b>; rounding can leave a tiny negative number.
    apart = max(norm_a**2 + norm_b**2 - 2 * inner, 0.0) ** 0.5
    return ModuleDifference(
        norm_a,
        norm_b,
        inner / (norm_a * norm_b) if both else None,
        (norm_b / norm_a) ** 2 if first else None,
        apart / norm_a if first else None,
    )
