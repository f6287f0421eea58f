"""Pictures of a pair of base models."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prolora_jax.io import atomic
from prolora_jax.matching import BLOCK, split_block

Sides = Mapping[str, tuple[float, float] | None]
"""(phi left, phi right) by target path; None where the module has no source."""

NO_SOURCE = "#d9d9d9"


def heat_map(similarities: Sides, title: str, path: Path, threshold: float = 0.8) -> None:
    """Similarity by block (rows) and role (columns), left and right side, as a PNG.

    Grey cells are modules of the target that no source module was found for; white cells do not
    exist in that block; a red dot marks a similarity below the gate. Modules outside transformer
    blocks stand in one row per slot.

    Args:
        similarities: by target path.
        title: the pair's name.
        path: PNG to write.
        threshold: of the gate.
    """
    cells: dict[str, dict[str, tuple[float, float] | None]] = {}
    for module, sides in similarities.items():
        row, column = _cell(module)
        cells.setdefault(row, {})[column] = sides
    rows = sorted(cells, key=_natural)
    columns = sorted({column for row in cells.values() for column in row}, key=_natural)
    values = np.full((2, len(rows), len(columns)), np.nan)
    missing = np.zeros((len(rows), len(columns)), bool)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if column in cells[row]:
                sides = cells[row][column]
                missing[i, j] = sides is None
                values[:, i, j] = np.nan if sides is None else sides
    height = max(3.0, 0.22 * len(rows) + 1.8)
    figure = Figure(figsize=(3.2 + 0.8 * len(columns), height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, side, name in zip(axes, values, ("left (out)", "right (in)"), strict=True):
        axis.imshow(np.where(missing, 1.0, np.nan), cmap=_grey(), aspect="auto")
        image = axis.imshow(side, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        below = np.argwhere(side < threshold)
        axis.scatter(below[:, 1], below[:, 0], s=6, c="red")
        axis.set_title(f"phi {name}", fontsize=9)
        axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
        axis.set_yticks(range(len(rows)), rows, fontsize=6)
    figure.colorbar(image, ax=axes, label="similarity (1: same span)", shrink=0.8)
    figure.suptitle(f"{title}   (red dot: below {threshold:g}; grey: no source module)", fontsize=10)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    atomic.write_bytes(path, buffer.getvalue())


def _grey():
    from matplotlib.colors import ListedColormap

    return ListedColormap([NO_SOURCE])


def _cell(path: str) -> tuple[str, str]:
    split = split_block(path)
    if split is None:
        slot, _, role = path.rpartition(".")
        return slot.removeprefix("unet."), role
    slot, index, role = split
    short = f"{slot}{BLOCK}{index}".removeprefix("unet.")
    return short.replace("_blocks", "").replace(".transformer.", ".block "), role


def _natural(text: str) -> list[tuple[int, int | str]]:
    """Sort key with numbers in numeric order."""
    parts = "".join(c if c.isdigit() else f"\0{c}\0" for c in text).split("\0")
    return [(0, int(p)) if p.isdigit() else (1, p) for p in parts if p]
