"""An adapter held against a base model: whether it is for it, and where its modules are."""

from typing import NamedTuple

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.algorithms.companions import without_copies
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.adapters.algorithms.factoring import Bias, Matrix, factored
from prolora_jax.adapters.detection import check_base
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused


class Fitted(NamedTuple):
    """An adapter that fits a base model.

    Attributes:
        adapter: with the base model's dotted paths.
        flags: for the report: what was assumed, or between which base models the file leaves a
            choice.
    """

    adapter: Adapter
    flags: tuple[str, ...] = ()


def fit(
    adapter: Adapter,
    spec: BaseModelSpec,
    assume_base: str | None = None,
    *,
    matrix: Matrix | None = None,
    factor_rank: FactorRank | None = None,
    bias: Bias | None = None,
    keep_dora: bool = False,
    late: bool = False,
    keep_own: bool = False,
    whole_own: bool = False,
) -> Fitted:
    """Hold an adapter against the base model it is said to be for.

    Names and shapes alone do not do: every module of SSD-1B is one of SDXL's by name and shape. So
    it is looked at what the file itself says, once: this takes as long as all the rest.

    Args:
        adapter: as parsed, or fitted before.
        spec: the base model.
        assume_base: id of the base model to believe in, whatever the file says.
        matrix: weights of the base model, for algorithms whose update depends on them, and for
            whole layers that may be copies of its own.
        factor_rank: of the factors that are made of other algorithms' updates; the default if None.
        bias: biases of the base model, which IA3 of peft scales, too.
        keep_dora: whether modules of DoRA become their BA alone, beside which their gains stand.
        late: as for `factored`.
        keep_own: as for `factored`.
        whole_own: as for `factored`.

    Returns:
        The adapter with dotted paths and with LoRA factors alone, and flags.

    Raises:
        AdapterRefused: a module is not in the base model, has other shapes, or occurs twice with
            different numbers, or its algorithm needs weights that are not given.
        WrongBase: the adapter can only belong to another published base model.
    """
    held = hold(adapter, spec, assume_base)
    how = {"keep_dora": keep_dora, "late": late, "keep_own": keep_own}
    how["whole_own"] = whole_own
    given = held.adapter
    if matrix is not None and bias is not None:
        given = without_copies(given, matrix, bias)
    made = factored(given, spec, matrix, factor_rank, bias=bias, **how)
    return Fitted(made, held.flags)


def hold(adapter: Adapter, spec: BaseModelSpec, assume_base: str | None = None) -> Fitted:
    """As `fit`, but modules of other algorithms stay what they are.

    Raises:
        AdapterRefused: as `fit`; no weights are needed.
        WrongBase: as `fit`.
    """
    try:
        resolved = resolve(adapter, spec)
    except AdapterRefused:
        # "It is for another base model" says more than "these modules are not in this one".
        check_base(adapter, spec, assume_base)
        raise
    # Of resolved names: those of a Flax tree say nothing to the detection before.
    return Fitted(resolved, check_base(resolved, spec, assume_base))
