"""Subspaces of base models computed ahead of their migrations."""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.migration.opening import Place, open_base_model
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import basis_rule
from prolora_jax.subspaces.compute import compute_subspaces
from prolora_jax.subspaces.store import BasisStore


class Built(NamedTuple):
    """What a store holds of one base model now.

    Attributes:
        model: where it lies.
        modules: how many of its modules were asked for.
        computed: of them, in this run.
    """

    model: str
    modules: int
    computed: int


def build_subspaces(
    models: Sequence[Place],
    store: BasisStore,
    modules: Literal["attn", "linear", "all"] = "attn",
    basis_rank: str = "energy=0.95",
    *,
    for_pair: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Iterator[Built]:
    """Compute the subspaces of base models, and keep them.

    What is stored already is not computed again.

    Args:
        models: base models, or where they lie.
        store: where they are kept.
        modules: attn: attention layers; linear: all linear layers; all: convolutions, too.
        basis_rank: how many columns to keep at least.
        for_pair: of two models, source and target of a migration: only the modules of both that
            it can use, by the default matching.
        workers: processes.
        progress: called with (what, done, total).

    Yields:
        One model after the other, as soon as it is done.

    Raises:
        UsageError: `for_pair` without two models, or one is not there.
        BaseModelError: one cannot be used.
    """
    if for_pair and len(models) != 2:
        raise UsageError(
            f"--for-pair: expected two base models, source and target; found {len(models)}",
            code=Refusal.BAD_OPTION,
        )
    rule = basis_rule(basis_rank)
    opened = [open_base_model(place, store) for place in models]
    usable = _usable(store, *opened) if for_pair else [model.spec.modules for model in opened]
    for model, known in zip(opened, usable, strict=True):
        paths = [path for path in known if model.spec.modules[path].kind_is(modules)]
        done = compute_subspaces(model, paths, store, rule, progress, workers)
        yield Built(model.location, len(paths), done)


def _usable(
    store: BasisStore, source: BaseModel, target: BaseModel
) -> tuple[Collection[str], Collection[str]]:
    """Modules of both models that a migration from one to the other can use."""
    pairs = BasePair(source, target, store).matching().pairs
    return dict.fromkeys(pairs.values()), pairs
