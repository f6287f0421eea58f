"""Updates of other algorithms made into LoRA factors, which all that follows works on.

What is of low rank stays exact. What is not gets the best factors of a rank (Eckart-Young), and the
share of its squared norm that they hold is said. One module is dense at a time, never a file.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import (
    Adapter,
    Companion,
    Gains,
    LoraModule,
    MadeFrom,
    StructuredModule,
)
from prolora_jax.adapters.algorithms.algorithm import LowRank, Shape, Update, flat_in
from prolora_jax.adapters.algorithms.cutting import Cut, FactorRank, cut_to_rank, enough, even
from prolora_jax.adapters.algorithms.dora import DORA, bare, gains
from prolora_jax.adapters.algorithms.magnitudes import is_per_row
from prolora_jax.adapters.algorithms.table import WRITTEN, algorithm_for
from prolora_jax.adapters.late import LastMade, Late, LateModule
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

_FAR_FROM_EDGES = 1e-20, 1e20
"""Norms of updates whose factors, which are even, float32 holds without a look at them."""

_WHOLE = FactorRank(1.0, None)

Matrix = Callable[[str], np.ndarray]
"""The weight of a module of the source as a matrix `(out, in * kh * kw)`."""
Bias = Callable[[str], np.ndarray | None]
"""The bias of a module's layer; None where it has none."""


def sketches(adapter: Adapter) -> tuple[LoraModule, ...]:
    """Rank-1 stand-ins for modules of other algorithms: names and shapes, where tensors say them.

    Args:
        adapter: as parsed, or resolved.
    """
    found = []
    for module in adapter.structured:
        shape = algorithm_for(module).matrix_shape(module.parts)
        if shape is not None:
            factors = np.ones((1, shape[1])), np.ones((shape[0], 1))
            made = MadeFrom(module.algorithm, 1.0, module.dtype.name)
            found.append(LoraModule(module.path, *factors, made_from=made))
    return tuple(found)


def factored(
    adapter: Adapter,
    spec: BaseModelSpec,
    matrix: Matrix | None = None,
    rank: FactorRank | None = None,
    *,
    bias: Bias | None = None,
    keep_dora: bool = False,
    late: bool = False,
    keep_own: bool = False,
    whole_own: bool = False,
) -> Adapter:
    """An adapter whose modules are all LoRA factors.

    Args:
        adapter: resolved against `spec`.
        spec: the base model that it was trained on.
        matrix: its weights; None where they are not at hand.
        rank: of the factors that are made; the default when None.
        bias: the biases of its layers; what an algorithm adds to them becomes companions.
        keep_dora: whether the factors of DoRA are its BA alone, and its gains stand beside them
            (`MadeFrom.gains`).
        late: whether factors may be made when they are asked for, one module's at a time
            (`late.LateModule`).
        keep_own: whether modules that can be written as they are come along (`MadeFrom.own`).
        whole_own: whether these will be written so, all of them: those of LoHa are not cut then,
            as nobody asks for factors.

    Returns:
        The adapter; made factors are float32, scale included, after those of plain LoRA.

    Raises:
        AdapterRefused: an algorithm needs a weight that is not at hand, or its numbers are none.
    """
    if not adapter.structured:
        return adapter
    rank = rank or FactorRank()
    slot = LastMade() if late and not adapter.outline else None
    made: list[LoraModule] = []
    for module in adapter.structured:
        own = module if keep_own and module.algorithm in WRITTEN else None
        whole = whole_own and own is not None and stays_whole(module)
        given = adapter, spec, matrix, _WHOLE if whole else rank
        if keep_dora and module.algorithm == DORA.name:
            made.append(_bare_factors(module, *given))
        else:
            made.append(_late(module, spec, given[3], slot, own) or _factors(module, *given, own))
    before = None if adapter.outline else adapter.fingerprint
    made_too = () if bias is None or adapter.outline else _biases(adapter, spec, bias)
    return replace(
        adapter,
        modules=(*adapter.modules, *made),
        structured=(),
        companions=(*adapter.companions, *made_too),
        read_as=before,
    )


def stays_whole(module: StructuredModule) -> bool:
    """Whether a module that is written as it is is counted with all columns that it has.

    So are those of LoHa, whose columns are known without a decomposition.

    Args:
        module: of any algorithm.
    """
    written = module.algorithm in WRITTEN and module.alpha != 0.0
    return written and algorithm_for(module).spectrum is None


def _biases(adapter: Adapter, spec: BaseModelSpec, bias: Bias) -> Iterator[Companion]:
    """What modules add to the biases of their layers, where the layers have some."""
    for module in adapter.structured:
        algorithm, known = algorithm_for(module), spec.modules.get(module.path)
        if not algorithm.needs_weight or known is None:
            continue
        own = bias(module.path)
        if own is None:
            continue
        added = algorithm.added_to_bias(module, known.shape, own.astype(np.float64))
        if added is None:
            continue
        narrow = added.astype(np.float32)
        if not np.isfinite(narrow).all():
            raise _not_finite(module, adapter)
        yield Companion(f"{module.path}.bias", module.path, "bias", narrow)


def _bare_factors(
    module: StructuredModule,
    adapter: Adapter,
    spec: BaseModelSpec,
    matrix: Matrix | None,
    rank: FactorRank,
) -> LoraModule:
    """Of DoRA what is added before norms are set, with the gains."""
    known = spec.modules.get(module.path)
    if known is None or matrix is None:
        raise _needs_weights(module, adapter)
    alone = bare(module)
    if isinstance(alone, StructuredModule):
        alone = _factors(alone, adapter, spec, matrix, rank)
    assert alone.made_from is not None  # of `bare` and of `_factors`
    if adapter.outline:
        found = Gains(np.ones(1), bool(is_per_row(module.parts, known.shape)))
    else:
        with np.errstate(all="ignore"):  # looked at below
            found = gains(module, known.shape, matrix(module.path).astype(np.float64))
    if not np.isfinite(found.values).all():
        raise _not_finite(module, adapter)
    made = alone.made_from._replace(algorithm=module.algorithm, gains=found, own=None)
    return replace(alone, made_from=made)


def kept_share(adapter: Adapter) -> float:
    """Share of an adapter's squared norm that its factors hold, of all its modules together.

    Args:
        adapter: with LoRA factors alone.
    """
    held = whole = 0.0
    for module in adapter.modules:
        square = module.norm**2
        kept = 1.0 if module.made_from is None else module.made_from.kept
        held += square
        whole += square / kept if kept else 0.0
    return held / whole if whole else 1.0


def exact_update(
    module: StructuredModule, adapter: Adapter, spec: BaseModelSpec, matrix: Matrix | None = None
) -> Update:
    """The whole update of one module, in factors where it has them exactly, else dense.

    Args:
        module: of `adapter`.
        adapter: resolved against `spec`.
        spec: the base model that it was trained on.
        matrix: its weights; None where they are not at hand.

    Returns:
        Factors or a matrix `(out, in * kh * kw)`, float64, scale included.

    Raises:
        AdapterRefused: the update depends on a weight that is not at hand, or its numbers are none.
    """
    return _finite(module, adapter, *_layer(module, adapter, spec, matrix))


def _finite(
    module: StructuredModule, adapter: Adapter, shape: Shape, weight: np.ndarray | None
) -> Update:
    """The update of a module, whose numbers are looked at."""
    try:
        with np.errstate(all="ignore"):  # looked at below
            update = algorithm_for(module).update(module, shape, weight, None)
    except np.linalg.LinAlgError as failure:
        raise _not_finite(module, adapter) from failure
    arrays = (update.up, update.down) if isinstance(update, LowRank) else (update,)
    if not all(np.isfinite(array).all() for array in arrays):
        raise _not_finite(module, adapter)
    return update


def _layer(
    module: StructuredModule, adapter: Adapter, spec: BaseModelSpec, matrix: Matrix | None
) -> tuple[Shape, np.ndarray | None]:
    """The shape of a module's layer, and its weight where the update depends on it."""
    algorithm, known = algorithm_for(module), spec.modules.get(module.path)
    shape = algorithm.matrix_shape(module.parts) if known is None else known.shape
    if shape is None or (algorithm.needs_weight and (matrix is None or known is None)):
        raise _needs_weights(module, adapter)
    if adapter.outline or not algorithm.needs_weight or matrix is None:
        return shape, None
    return shape, matrix(module.path).astype(np.float64)


def _factors(
    module: StructuredModule,
    adapter: Adapter,
    spec: BaseModelSpec,
    matrix: Matrix | None,
    rank: FactorRank,
    own: StructuredModule | None = None,
) -> LoraModule:
    algorithm = algorithm_for(module)
    shape, weight = _layer(module, adapter, spec, matrix)
    if adapter.outline:
        out, width = flat_in(shape)
        columns = min(algorithm.bound(module.parts, (out, width)), rank.most or out)
        one = np.float32(1)
        cut = Cut(np.full((out, columns), one), np.full((columns, width), one), 1.0)
    else:
        cut = _worked_out(module, shape, weight, rank)
    if cut is None:
        raise _not_finite(module, adapter)
    ones = (1,) * (len(shape) - 2)
    return LoraModule(
        module.path,
        cut.down.reshape(cut.down.shape[0], *shape[1:]),
        cut.up.reshape(*cut.up.shape, *ones),
        made_from=MadeFrom(algorithm.name, cut.kept, module.dtype.name, own=own),
    )


def _late(
    module: StructuredModule,
    spec: BaseModelSpec,
    rank: FactorRank,
    slot: LastMade | None,
    own: StructuredModule | None,
) -> LoraModule | None:
    """Factors that are made when they are asked for; None where they have to be made at once.

    That is where their rank is not known without them, and where float32 may not hold them.
    """
    algorithm, known = algorithm_for(module), spec.modules.get(module.path)
    shape = algorithm.matrix_shape(module.parts) if known is None else known.shape
    if slot is None or shape is None:
        return None
    with np.errstate(all="ignore"):  # looked at below
        size = _size(module, shape, rank, wanted=own is None)
    if size is None or not _FAR_FROM_EDGES[0] < size.norm < _FAR_FROM_EDGES[1]:
        return None

    def make() -> tuple[np.ndarray, np.ndarray]:
        again = partial(algorithm.update, module, shape, None, size.rank)
        update = (size.started or again)()
        assert isinstance(update, LowRank)  # by `_size`
        up, down = even(update)
        ones = (1,) * (len(shape) - 2)
        return (
            down.astype(np.float32, copy=False).reshape(size.rank, *shape[1:]),
            up.astype(np.float32, copy=False).reshape(*up.shape, *ones),
        )

    made = MadeFrom(algorithm.name, size.kept, module.dtype.name, own=own)
    return LateModule.of(module.path, Late(make, shape, size.rank, size.norm, slot), made)


class _Size(NamedTuple):
    """What is known of factors that are not made: columns, share of the square, norm.

    `started` makes them of what was found on the way, where that is held.
    """

    rank: int
    kept: float
    norm: float
    started: Callable[[], LowRank] | None = None


def _size(
    module: StructuredModule, shape: Shape, rank: FactorRank, *, wanted: bool
) -> _Size | None:
    """What factors will have; None where nobody knows without them.

    `wanted` says that they will be asked for, whatever becomes of the module.
    """
    algorithm = algorithm_for(module)
    if algorithm.needs_weight:
        return None
    if algorithm.spectrum is not None:
        try:
            spectrum = algorithm.spectrum(module, rank.most, wanted)
        except np.linalg.LinAlgError:
            return None
        squares = np.square(spectrum.sigma)
        total = float(squares.sum())
        if total == 0.0:  # of an untrained LoKr no share of anything is kept
            return None
        whole = rank.most is None or len(squares) <= rank.most  # as in `cut_to_rank`
        columns, held = (len(squares), total) if whole else enough(squares, total, rank)
        return _Size(columns, min(held / total, 1.0), held**0.5, spectrum.started(columns))
    update = algorithm.update(module, shape, None, None)
    if not isinstance(update, LowRank) or update.down.shape[0] > (rank.most or np.inf):
        return None
    square = np.vdot(update.up.T @ update.up, update.down @ update.down.T)
    return _Size(update.down.shape[0], 1.0, max(float(square), 0.0) ** 0.5)


def _needs_weights(module: StructuredModule, adapter: Adapter) -> AdapterRefused:
    title = algorithm_for(module).title
    return AdapterRefused(
        f"{adapter.origin}: {module.path}: needs-source-weights:{title}: found a module whose "
        f"update depends on the weight that it was trained on; expected that base model; give it "
        f"(--source of migrate, --base of convert and diff)",
        code=Refusal.NEEDS_SOURCE_WEIGHTS,
    )


def _not_finite(module: StructuredModule, adapter: Adapter) -> AdapterRefused:
    title = algorithm_for(module).title
    return AdapterRefused(
        f"{adapter.origin}: {module.path}: found an update of {title} that float32 does not hold; "
        f"expected finite numbers; fetch or train the adapter again",
        code=Refusal.NON_FINITE,
    )


def _worked_out(
    module: StructuredModule, shape: Shape, weight: np.ndarray | None, rank: FactorRank
) -> Cut | None:
    """Factors in float32; None where a number on the way to them is too large, or there is none."""
    try:
        # Whether it went well is asked once, of the result.
        with np.errstate(all="ignore"):
            update = algorithm_for(module).update(module, shape, weight, rank.most)
            cut = cut_to_rank(update, rank)
            up, down = cut.up.astype(np.float32), cut.down.astype(np.float32)
    except np.linalg.LinAlgError:
        return None
    finite = np.isfinite(up).all() and np.isfinite(down).all() and np.isfinite(cut.kept)
    return Cut(up, down, cut.kept) if finite else None
