"""Pictures: numbers by block and role."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from prolora_jax.architectures.stacks import place_of
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.io.adapters.whole_files import ComparedFiles
from prolora_jax.io.outputs.protected import require_ending
from prolora_jax.migration.base_similarity import BaseSimilarity

Cells = Mapping[str, float | None]
"""A number by module path; None where there is none to show."""

GREY = "#d9d9d9"


@dataclass(frozen=True)
class Panel:
    """One map of a picture.

    Attributes:
        title: above the map.
        cells: numbers by module path.
        low: number of the darkest colour.
        high: number of the brightest colour.
        mark_below: cells below this number get a red dot.
    """

    title: str
    cells: Cells
    low: float = 0.0
    high: float = 1.0
    mark_below: float = -np.inf


def similarity_panels(
    sides: Mapping[str, tuple[float, float] | None], threshold: float = 0.8
) -> tuple[Panel, Panel]:
    """Left and right similarity of a pair of bases.

    Args:
        sides: (phi left, phi right) by target path; None where the module has no source.
        threshold: of the gate; modules below it are marked.

    Returns:
        One panel a side.
    """
    left = {path: None if pair is None else pair[0] for path, pair in sides.items()}
    right = {path: None if pair is None else pair[1] for path, pair in sides.items()}
    return (
        Panel("phi left (out)", left, mark_below=threshold),
        Panel("phi right (in)", right, mark_below=threshold),
    )


def block_map(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Numbers by block (rows) and role (columns), one map a panel, as a PNG.

    Grey cells have no number; white cells do not exist in that block. Modules outside transformer
    blocks stand in one row per slot. The picture grows with the number of blocks.

    Args:
        panels: all over the same modules.
        title: above everything.
        path: PNG to write.

    Raises:
        UsageError: its name has another ending.
    """
    require_ending(path, ".png")
    places = {module: _cell(module) for panel in panels for module in panel.cells}
    rows = sorted({row for row, _ in places.values()}, key=_natural)
    columns = sorted({column for _, column in places.values()}, key=_natural)
    row_of, column_of = ({name: i for i, name in enumerate(names)} for names in (rows, columns))
    height = max(3.0, 0.2 * len(rows) + 2.0)
    width = 2.6 + len(panels) * (0.6 + 0.42 * len(columns))
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        values = np.full((len(rows), len(columns)), np.nan)
        absent = np.full_like(values, np.nan)
        for module, number in panel.cells.items():
            row, column = places[module]
            place = row_of[row], column_of[column]
            values[place] = np.nan if number is None else number
            absent[place] = 1.0 if number is None else np.nan
        axis.imshow(absent, cmap=ListedColormap([GREY]), aspect="auto")
        image = axis.imshow(values, vmin=panel.low, vmax=panel.high, cmap="viridis", aspect="auto")
        marked = np.argwhere(values < panel.mark_below)
        axis.scatter(marked[:, 1], marked[:, 0], s=7, c="red")
        axis.set_title(panel.title, fontsize=9)
        axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
        axis.set_yticks(range(len(rows)), rows, fontsize=6)
        figure.colorbar(image, ax=axis, shrink=0.7)
    figure.suptitle(title, fontsize=10)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    atomic.write_bytes(path, buffer.getvalue())


def _cell(path: str) -> tuple[str, str]:
    """(row, column) of a module: its block, and its role inside."""
    place = place_of(path)
    if place is None or place.deep is None:
        _, _, inner = path.partition(".")
        part, _, role = inner.rpartition(".")
        return part or "(top)", role
    _, _, home = place.home.partition(".")
    block = f"{place.deep.stack.level.removesuffix('s')} {place.deep.number}"
    return f"{home}.{block}".removeprefix("."), place.role


def _natural(text: str) -> list[tuple[int, int | str]]:
    """Sort key with numbers in numeric order."""
    return [
        (0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text) if part
    ]


def similarity_map(found: BaseSimilarity, path: Path) -> None:
    """The similarity of two base models as a picture.

    Args:
        found: from `similarity`.
        path: PNG to write.
    """
    sides = {p: m.sides for p, m in found.measures.items()} | dict.fromkeys(found.alone)
    source, target = found.names
    title = f"{source} -> {target}   (red dot: below 0.8; grey: no source module)"
    block_map(similarity_panels(sides), title, path)


def comparison_map(found: ComparedFiles, title: str, path: Path) -> None:
    """Two adapters side by side as a picture: cosine and ratio of norms.

    Args:
        found: from `compare_files`.
        title: above everything.
        path: PNG to write.

    Raises:
        UsageError: the names of the modules do not say where a block ends.
    """
    if found.is_flat:
        raise UsageError(
            "--plot needs --base for kohya files: their names do not say where a block ends",
            code=Refusal.BAD_OPTION,
        )
    modules = found.comparison.modules
    cosine = {path: m.cosine for path, m in modules.items()}
    ratio = {path: m.energy and m.energy**0.5 for path, m in modules.items()}
    top = max([r for r in ratio.values() if r is not None], default=1.0)
    panels = Panel("cosine", cosine, -1.0), Panel("norm of B / norm of A", ratio, 0.0, top)
    block_map(panels, title, path)
