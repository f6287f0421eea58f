"""Operators and comparisons of small made spans, to be put into stores."""

import os
import time
from pathlib import Path

import numpy as np
import strategies as gen

from prolora_jax.method.operators import FormKind, Method, ModuleOperators
from prolora_jax.method.prepared import Comparison, ComparisonKey, OperatorKey

A, B, C = (letter * 32 for letter in "abc")
OUT, INTO, K_S, K_T = 96, 80, 20, 33  # widths of 64, and so less than whole axes
COMPARISON = Comparison(0.9, 0.8, 0.7, None, K_S, K_T, 1e-3)


def key_of(method: Method = "prolora", source: str = A, target: str = B) -> OperatorKey:
    return OperatorKey.of((source, target), method, (K_S, K_T), 0.1)


def compared(source: str = A, target: str = B) -> ComparisonKey:
    return ComparisonKey(source, target, "energy=0.9", "max")


def operators_of(
    method: Method = "prolora", kind: FormKind | None = None, seed: int = 0
) -> ModuleOperators:
    rng = np.random.default_rng(seed)
    sides = []
    for dim in (OUT, INTO):
        source, target = (gen.orthonormal(rng, dim, k).astype(np.float32) for k in (K_S, K_T))
        sides.append(gen.side(method, source, target, 0.1, kind))
    return ModuleOperators(*sides)


def arrays_of(operators: ModuleOperators) -> list[np.ndarray]:
    return [a for side in operators for a in (side.operator.analysis, *side.operator.synthesis)]


def assert_same(got: ModuleOperators | None, wanted: ModuleOperators) -> None:
    """Bit for bit."""
    assert got is not None
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.form, ours.still) == (theirs.form, theirs.still)
    for ours, theirs in zip(arrays_of(got), arrays_of(wanted), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def file_of(folder: Path) -> Path:
    """The only file of operators there."""
    (path,) = folder.rglob("*.operators.safetensors")
    return path


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86400.0
    os.utime(path, (then, then))


def days_old(path: Path) -> float:
    return (time.time() - path.stat().st_mtime) / 86400.0
