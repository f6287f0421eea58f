"""Two adapters side by side, module by module, on factors wherever their updates have some.

What is compared is what each adds to the weights, whatever its algorithm: exactly, as no factors
are made of updates that have none. One pair of modules is worked out at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, LoraModule, StructuredModule
from prolora_jax.adapters.algorithms.algorithm import LowRank, Update
from prolora_jax.adapters.algorithms.factoring import Matrix, exact_update
from prolora_jax.architectures.spec import BaseModelSpec


class WeightsOf(NamedTuple):
    """The base model of one of the two adapters.

    Attributes:
        spec: its modules.
        matrix: its weights; None where they are not at hand.
    """

    spec: BaseModelSpec
    matrix: Matrix | None = None


NO_BASE = WeightsOf(BaseModelSpec("none", {}))
"""Of adapters of plain LoRA, whose updates depend on no weight."""


_WHOLE = frozenset({"layer", "saved"})


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
        beside: layers beside the pairs (biases, norms, whole layers, rows, layers of pictures) of
            which one has numbers that the other has not; none of a migrated adapter.
        cosine: of the two adapters over all common modules.
        energy: squared norm of the second over that of the first, over all common modules.
    """

    modules: Mapping[str, ModuleDifference]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    other_shape: tuple[str, ...]
    beside: tuple[str, ...]
    cosine: float | None
    energy: float | None


def compare(
    a: Adapter,
    b: Adapter,
    origins: Mapping[str, str] | None = None,
    bases: tuple[WeightsOf, WeightsOf] = (NO_BASE, NO_BASE),
) -> AdapterComparison:
    """Compare two adapters by module path.

    Args:
        a: first adapter.
        b: second adapter; both resolved, or both plain LoRA with the names of one flat naming.
        origins: path in `a` by path in `b`, where a migration moved modules to other blocks;
            the comparison has the paths of `b` then.
        bases: what the first and the second adapter are for: asked of modules of other algorithms
            than plain LoRA alone.

    Returns:
        The comparison; cost O((out + in) rank^2) a module of factors.

    Raises:
        AdapterRefused: the update of a module depends on a weight that is not given, or its
            numbers are none.
    """
    of_a, of_b = ({m.path: m for m in (*x.modules, *x.structured)} for x in (a, b))
    beside = _unlike_beside(a, b) if origins is None else ()
    if origins is None:
        origins = {path: path for path in of_b}
    pairs = {path: of_a[origins[path]] for path in of_b if origins.get(path) in of_a}
    used = {module.path for module in pairs.values()}
    modules, products = {}, []
    for path, module in pairs.items():
        first, second = _update(module, a, bases[0]), _update(of_b[path], b, bases[1])
        if _shape(first) != _shape(second):
            continue
        products.append(_inner(first, second))
        modules[path] = _difference(_norm(first), _norm(second), products[-1])
    whole = _difference(
        float(np.linalg.norm([m.norm_a for m in modules.values()])),
        float(np.linalg.norm([m.norm_b for m in modules.values()])),
        sum(products),
    )
    return AdapterComparison(
        modules,
        tuple(path for path in of_a if path not in used),
        tuple(path for path in of_b if path not in pairs),
        tuple(path for path in pairs if path not in modules),
        beside,
        whole.cosine,
        whole.energy,
    )


def _unlike_beside(a: Adapter, b: Adapter) -> tuple[str, ...]:
    """Layers of which what stands beside the pairs is not the same in both, sorted."""
    of_a, of_b = (
        {
            # Whole layers have several tensors, which their keys tell apart.
            (c.path, c.part, c.rows, c.key.rpartition(".")[2] if c.part in _WHOLE else ""): c.array
            for c in adapter.companions
            if c.part != "none"
        }
        for adapter in (a, b)
    )
    same = {
        place for place in of_a.keys() & of_b.keys() if np.array_equal(of_a[place], of_b[place])
    }
    return tuple(sorted({path for path, *_ in (of_a.keys() | of_b.keys()) - same}))


def _update(module: LoraModule | StructuredModule, adapter: Adapter, base: WeightsOf) -> Update:
    """What a module adds, float64, scale included."""
    if isinstance(module, LoraModule):
        up, down = layout.up_to_matrix(module.up), layout.down_to_matrix(module.down)
        return LowRank(module.scale * up.astype(np.float64), down.astype(np.float64))
    update = exact_update(module, adapter, base.spec, base.matrix)
    if isinstance(update, LowRank) and update.down.shape[0] > min(_shape(update)):
        return update.up @ update.down  # of LoHa: more columns than the matrix has
    return update


def _shape(update: Update) -> tuple[int, int]:
    if isinstance(update, LowRank):
        return update.up.shape[0], update.down.shape[1]
    return update.shape[0], update.shape[1]


def _inner(a: Update, b: Update) -> float:
    """Inner product of two updates."""
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        return float(np.sum((a.up.T @ b.up) * (a.down @ b.down.T)))
    if isinstance(b, LowRank):
        a, b = b, a
    if isinstance(a, LowRank):
        return float(np.sum((a.up.T @ b) * a.down))
    return float(np.vdot(a, b))


def _norm(update: Update) -> float:
    # Rounding can leave a tiny negative number where the update is zero.
    return max(_inner(update, update), 0.0) ** 0.5


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
