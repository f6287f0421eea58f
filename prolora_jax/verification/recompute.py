"""Recomputations of many modules: in turn, or by worker processes that read the weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.engines.processes import run_in_processes
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.plans.options import MigrationOptions, basis_rule
from prolora_jax.verification.dense import DenseResult, recompute
from prolora_jax.verification.sampling import work
from prolora_jax.verification.weights import Weights, dense_update, finite_matrix

WORTH_A_POOL = 1e10
"""Operations, as `sampling.work` counts them, from which starting processes pays: 6 s of a core."""


@dataclass(frozen=True)
class Thoroughness:
    """How much of a file is recomputed.

    Attributes:
        everything: every module, however long it takes; else as `sampling` says.
        seed: draws the modules that an earlier check has drawn; a new word when None.
        workers: processes that recompute, where both base models are on disk.
    """

    everything: bool = False
    seed: str | None = None
    workers: int = 1


UNASKED = Thoroughness()


class HeavyModule(NamedTuple):
    """One module to recompute.

    Attributes:
        path: in the target.
        source_path: in the source.
        before: the input's module.
    """

    path: str
    source_path: str
    before: LoraModule


def recompute_one(
    pair: HeavyModule, source: Weights, target: Weights, options: MigrationOptions
) -> DenseResult:
    """One module, from the weights.

    Raises:
        BaseModelError: a weight has NaN or infinite numbers.
    """
    own = options.options_for(pair.path)
    return recompute(
        own.method,
        finite_matrix(source, pair.source_path),
        finite_matrix(target, pair.path),
        dense_update(pair.before),
        basis_rule(own.basis_rank),
        options.pair_rank,
        rotation_min_cos=options.rotation_min_cos,
    )


def recompute_all(
    pairs: Sequence[HeavyModule],
    source: Weights,
    target: Weights,
    options: MigrationOptions,
    workers: int,
) -> Iterator[tuple[HeavyModule, DenseResult]]:
    """Many modules, as they are ready.

    Args:
        pairs: the modules.
        source: base model.
        target: base model.
        options: of the migration.
        workers: processes.

    Yields:
        Each module and what came of it.

    Raises:
        BaseModelError: a weight has NaN or infinite numbers.
    """
    worth = sum(work(target.spec, pair.path) for pair in pairs) > WORTH_A_POOL
    if workers > 1 and worth and isinstance(source, BaseModel) and isinstance(target, BaseModel):
        places = source.location, target.location
        order = sorted(pairs, key=lambda pair: -work(target.spec, pair.path))
        tasks = [_Task(pair, *places, options) for pair in order]
        for task, dense in run_in_processes(_in_worker, tasks, workers):
            yield task.pair, dense
        return
    for pair in pairs:
        yield pair, recompute_one(pair, source, target, options)


class _Task(NamedTuple):
    pair: HeavyModule
    source: str
    target: str
    options: MigrationOptions


def _in_worker(task: _Task) -> DenseResult:
    source, target = _model(task.source), _model(task.target)
    return recompute_one(task.pair, source, target, task.options)


@cache
def _model(location: str) -> BaseModel:
    return load_base_model(location)
