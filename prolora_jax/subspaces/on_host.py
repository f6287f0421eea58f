"""Subspaces computed on the host: one after the other, or by worker processes. Loads no JAX."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from prolora_jax.engines.processes import run_in_processes
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.method.basis import Basis, BasisRule, compute_basis

Todo = dict[str, tuple[str, BasisRule]]
"""Module path and rank rule of each basis to compute, by the fingerprint of its weight."""


def finite_matrix(model: BaseModel, path: str, rows: tuple[int, int] | None = None) -> np.ndarray:
    """The weight of one module as a float32 matrix `(out, in)`.

    Args:
        model: the base model.
        path: module path.
        rows: the first one and the one behind the last; all when None.

    Raises:
        BaseModelError: when it has NaN or infinite numbers.
    """
    matrix = model.matrix(path, rows)
    if not np.isfinite(matrix).all():
        raise BaseModelError(
            f"{model.location}: {path}: found NaN or infinite numbers; expected a finite weight. "
            "Use another copy of this base model.",
            code=Refusal.NON_FINITE,
        )
    return matrix


def compute_one(model: BaseModel, path: str, rule: BasisRule) -> Basis:
    """The basis of one module, from its weight.

    Raises:
        BaseModelError: when the weight has NaN or infinite numbers.
    """
    return compute_basis(finite_matrix(model, path), rule)


def in_turn(model: BaseModel, todo: Todo) -> Iterator[tuple[str, Basis]]:
    """Each weight's basis by its fingerprint, in the given order.

    Yields:
        Fingerprint and basis.
    """
    for fingerprint, (path, rule) in todo.items():
        yield fingerprint, compute_one(model, path, rule)


def in_processes(model: BaseModel, todo: Todo, workers: int) -> Iterator[tuple[str, Basis]]:
    """Each weight's basis by its fingerprint, as `workers` processes have them ready.

    Yields:
        Fingerprint and basis.
    """
    # Largest first: the last ones to finish are then small.
    order = sorted(todo.items(), key=lambda item: -operations(model, item[1][0]))
    tasks = [_Task(fingerprint, model.location, *item) for fingerprint, item in order]
    for task, basis in run_in_processes(_compute_in_worker, tasks, workers):
        yield task.fingerprint, basis


def operations(model: BaseModel, path: str) -> float:
    """About how many floating-point operations the basis of one module takes."""
    short, long = sorted(model.spec.modules[path].matrix_shape)
    return 10.0 * long * short**2


@cache
def _model_in_worker(location: str) -> BaseModel:
    return load_base_model(location)


class _Task(NamedTuple):
    fingerprint: str
    location: str
    path: str
    rule: BasisRule


def _compute_in_worker(task: _Task) -> Basis:
    return compute_one(_model_in_worker(task.location), task.path, task.rule)
