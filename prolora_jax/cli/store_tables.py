"""What a store holds, as tables for people and as rows for JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from prolora_jax.io.stores.basis_store import FolderStore, StoredBasis
from prolora_jax.io.stores.operator_folder import StoredComparison, StoredOperators


def store_document(store: FolderStore) -> dict[str, Any]:
    """Every basis; operators by arm and shape; comparisons together. As JSON has it."""
    operators = [
        {"method": method, "shape": shape, "count": len(found), "bytes": _bytes(found)}
        for (method, shape), found in _by_arm(store.operators.entries()).items()
    ]
    compared = store.operators.comparisons()
    return {
        "store": str(store.folder),
        "subspaces": store.entries(),
        "operators": operators,
        "comparisons": {"count": len(compared), "bytes": _bytes(compared)},
    }


def show_store(console: Console, store: FolderStore) -> None:
    """The same: subspaces by shape of the weight, operators by arm and shape, then the totals."""
    bases, operators = store.entries(), store.operators.entries()
    compared = store.operators.comparisons()
    _show_bases(console, store.folder, bases)
    if operators:
        table = Table(title="Operators, by arm")
        for name in ("arm", "out x in", "operators", "MB"):
            table.add_column(name, justify="left" if name == "arm" else "right")
        for (method, shape), found in _by_arm(operators).items():
            table.add_row(method, _shape(shape), str(len(found)), _megabytes(found))
        console.print(table)
    for what, found in (("subspaces", bases), ("operators", operators), ("comparisons", compared)):
        console.print(f"{len(found)} {what}, {_megabytes(found)} MB")


def _show_bases(console: Console, folder: Path, entries: list[StoredBasis]) -> None:
    rows: dict[tuple[int, int], list[StoredBasis]] = {}
    for entry in entries:
        rows.setdefault(entry.shape, []).append(entry)
    table = Table(title=f"Basis store {folder}")
    for name in ("out x in", "subspaces", "columns (min .. median .. max)", "MB"):
        table.add_column(name, justify="right")
    for shape, found in rows.items():
        columns = [entry.columns for entry in found]
        spread = f"{min(columns)} .. {np.median(columns):.0f} .. {max(columns)}"
        table.add_row(_shape(shape), str(len(found)), spread, _megabytes(found))
    console.print(table)


def _by_arm(
    entries: list[StoredOperators],
) -> dict[tuple[str, tuple[int, int]], list[StoredOperators]]:
    rows: dict[tuple[str, tuple[int, int]], list[StoredOperators]] = {}
    for entry in entries:
        rows.setdefault((entry.key.method, entry.shape), []).append(entry)
    return rows


def _bytes(entries: Sequence[StoredBasis | StoredOperators | StoredComparison]) -> int:
    return sum(entry.size for entry in entries)


def _megabytes(entries: Sequence[StoredBasis | StoredOperators | StoredComparison]) -> str:
    return f"{_bytes(entries) / 1e6:.1f}"


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
