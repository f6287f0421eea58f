"""Pictures of a sweep: what arrived, by arm, by distance, by rank of the subspaces."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prolora_jax.evaluation.laboratory.summary import Row, interval, number
from prolora_jax.io import atomic

COLOURS = {
    "copy": "#222222",
    "subspace": "#8c6bb1",
    "null-space": "#c994c7",
    "prolora": "#2b8cbe",
    "prolora-full": "#1a9850",
    "rotation": "#e6550d",
    "random-subspace": "#999999",
}


def share_by_arm(rows: Sequence[Row], arms: Sequence[str], targets: Sequence[str], path: Path):
    """A panel a target, a dot an arm with its interval over cells, small dots for the cells.

    Args:
        rows: results.
        arms: their names, top to bottom.
        targets: panels, left to right.
        path: PNG to write.
    """
    figure, axes = _panels(targets, height=0.34 * len(arms) + 1.0)
    for axis, target in zip(axes, targets, strict=True):
        for place, arm in enumerate(arms):
            values = _values(rows, lambda r, a=arm, t=target: r["arm"] == a and r["target"] == t)
            colour = _colour(arm)
            axis.plot(values, np.full(len(values), place), ".", color=colour, alpha=0.25, ms=4)
            axis.plot([float(np.mean(values))], [place], "o", color=colour, ms=5)
            axis.plot(interval(values), [place, place], "-", color=colour, lw=2)
            if arm == "copy":
                axis.axvline(float(np.mean(values)), color=colour, lw=0.7, ls=":")
        axis.set_yticks(range(len(arms)), [_short(arm) for arm in arms], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel("share of the gap closed", fontsize=8)
    _write(figure, path)


def share_by_distance(rows: Sequence[Row], arms: Sequence[str], path: Path):
    """Mean share of every target against the pair's mean similarity at k = half.

    Args:
        rows: results.
        arms: their names.
        path: PNG to write.
    """
    figure, (axis,) = _panels(["arrived against distance"], height=3.2, width=5.5)
    distances = {row["target"]: row["phi_half"] for row in rows}
    ordered = sorted(distances, key=lambda target: distances[target])
    for arm in arms:
        means = [
            float(np.mean(_values(rows, lambda r, a=arm, t=t: (r["arm"], r["target"]) == (a, t))))
            for t in ordered
        ]
        axis.plot([distances[t] for t in ordered], means, "o-", color=_colour(arm), lw=1.2, ms=4)
        axis.annotate(_short(arm), (distances[ordered[-1]], float(means[-1])), fontsize=7)
    for target in ordered:
        axis.annotate(target, (distances[target], 1.02), fontsize=7, rotation=30)
    axis.set_xlabel("mean similarity Phi at k = half (chance 0.5)", fontsize=8)
    axis.set_ylabel("share of the gap closed", fontsize=8)
    axis.set_ylim(-0.2, 1.2)
    _write(figure, path)


def share_by_rank(
    rows: Sequence[Row],
    methods: Sequence[str],
    rules: Sequence[str],
    targets: Sequence[str],
    arm: Callable[[str, str], str],
    path: Path,
):
    """A panel a target, a line a method, over the rank rules of the subspaces.

    Args:
        rows: results.
        methods: lines.
        rules: rank rules, left to right.
        targets: panels.
        arm: name of the arm of a method and a rule.
        path: PNG to write.
    """
    figure, axes = _panels(targets, height=2.8)
    for axis, target in zip(axes, targets, strict=True):
        chosen = [row for row in rows if row["target"] == target]
        for method in methods:
            names = [arm(method, rule) for rule in rules]
            means = [
                float(np.mean(_values(chosen, lambda r, name=name: r["arm"] == name)))
                for name in names
            ]
            axis.plot(means, "o-", color=_colour(method), lw=1.2, ms=3, label=method)
        copied = float(np.mean(_values(chosen, _is_copy)))
        axis.axhline(copied, color=COLOURS["copy"], lw=0.8, ls=":", label="copy")
        axis.set_xticks(range(len(rules)), list(rules), fontsize=6, rotation=45, ha="right")
    axes[0].set_ylabel("share of the gap closed", fontsize=8)
    axes[-1].legend(fontsize=6)
    _write(figure, path)


def _is_copy(row: Row) -> bool:
    return row["options"].get("method") == "copy" and row["options"].get("match", "name") == "name"


def _values(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> list[float]:
    found = (number(row, "arrived") for row in rows if wanted(row))
    return [value for value in found if value is not None]


def _panels(
    titles: Sequence[str], height: float, width: float | None = None
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width or 2.4 * len(titles) + 0.8, height), dpi=110)
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, len(titles), sharey=True, squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.2)
    return figure, list(axes[0])


def _short(arm: str) -> str:
    return arm.replace(" min_similarity=-1.0", "")


def _colour(arm: str) -> str:
    return COLOURS.get(arm.split()[0], "#555555")


def _write(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    atomic.write_bytes(path, buffer.getvalue())
