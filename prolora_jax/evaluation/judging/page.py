"""The page about an evaluation: tables, bars, pictures side by side; nothing from the network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader

from prolora_jax.evaluation.drawer import NONE
from prolora_jax.evaluation.judging.judge import COPY
from prolora_jax.evaluation.judging.metrics import METRICS
from prolora_jax.evaluation.judging.request import TRAINED, DrawnSet, Picture
from prolora_jax.evaluation.judging.tables import place_from
from prolora_jax.evaluation.judging.taught import in_words
from prolora_jax.io import atomic

_GIVEN = {NONE, COPY, TRAINED}
"""Arms that are not looked at for what they gain over a copy."""

_SHOWN, _SEEDS = 3, 3
"""Prompts from either end, and seeds of each, whose pictures stand on the page."""


class Bar(NamedTuple):
    """A bar of an arm, its lengths in percent of the widest.

    Attributes:
        arm: which.
        text: the value, with its interval.
        beside: the difference to `copy`, in words; empty where there is none.
        details: what a number of a set depends on.
        width: of the bar.
        low: where the interval begins.
        high: where it ends.
    """

    arm: str
    text: str
    beside: str
    details: str
    width: float
    low: float
    high: float


class Row(NamedTuple):
    """Pictures of a prompt and seed, by arm.

    Attributes:
        title: prompt and seed.
        links: addresses of the pictures, relative to the page.
    """

    title: str
    links: list[tuple[str, str]]


def write_page(document: Mapping[str, Any], sets: Sequence[DrawnSet], out: Path) -> None:
    """Write `index.html`.

    Args:
        document: of `evaluation.json`.
        sets: the pictures of its subjects, in their order.
        out: folder; pictures are linked, not copied.

    Raises:
        OutputError: the file cannot be written.
    """
    loader = PackageLoader("prolora_jax.evaluation.judging", "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    subjects = [
        {
            **subject,
            "charts": {name: bars(by_arm) for name, by_arm in subject["scores"].items()},
            "better": {name: _better(name) for name in subject["scores"]},
            "groups": _groups(subject, found, out),
            "rows": table_rows(subject, document),
            "refinement": in_words(subject["refined"]),
        }
        for subject, found in zip(document["subjects"], sets, strict=True)
    ]
    names = [document[side] and Path(document[side]).name for side in ("source", "target")]
    text = environment.get_template("page.html").render(
        document=document, subjects=subjects, source=names[0], target=names[1]
    )
    atomic.write_text(out / "index.html", text)


def table_rows(subject: Mapping[str, Any], document: Mapping[str, Any]) -> list[list[str]]:
    """Our numbers, an arm a row, then the published ones of the protocol; a name comes first."""
    names = list(subject["scores"])
    rows = []
    for arm in document["arms"]:
        scores = [subject["scores"][name].get(arm) for name in names]
        rows.append([arm, *("" if one is None else f"{one['value']:.4g}" for one in scores)])
    for one in document["published"]:
        cells = [_number(one["values"].get(name)) for name in names]
        rows.append([f"paper: {one['case']}, {one['arm']}", *cells])
    return rows


def bars(by_arm: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Bars of a metric, from zero or from its lowest value below."""
    ends = [s["interval"] or (s["value"], s["value"]) for s in by_arm.values()]
    lowest = min(0.0, *(low for low, _ in ends))
    widest = max(1e-12, max(high for _, high in ends) - lowest)

    def share(value: float) -> float:
        return round(100 * (value - lowest) / widest, 2)

    found = []
    for (arm, score), (low, high) in zip(by_arm.items(), ends, strict=True):
        text = f"{score['value']:.4g}"
        if score["interval"]:
            text += f" [{low:.4g}, {high:.4g}]"
        beside = ""
        if score["against_copy"]:
            value, least, most = score["against_copy"]
            beside = f"{value:+.4g} [{least:+.4g}, {most:+.4g}] beside copy"
        details = ", ".join(f"{name} {_short(value)}" for name, value in score["details"].items())
        places = share(score["value"]), share(low), share(high)
        found.append(Bar(arm, text, beside, details, *places))
    return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _better(name: str) -> str:
    more = METRICS[name].more_is_better
    return "" if more is None else "more is better" if more else "less is better"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _groups(subject: Mapping[str, Any], found: DrawnSet, out: Path) -> dict[str, list[Row]]:
    """Pictures of the prompts where an arm gains most over a copy, and of those where it loses."""
    order = _order(subject, found)
    if len(order) <= 2 * _SHOWN:
        return {"All prompts": _rows(order, found, out)}
    return {
        "Where a copy is beaten most": _rows(order[-_SHOWN:][::-1], found, out),
        "Where a copy is best": _rows(order[:_SHOWN], found, out),
    }


def _order(subject: Mapping[str, Any], found: DrawnSet) -> list[int]:
    """Prompts by what the last moved arm gains over `copy`, by the first metric of pictures."""
    places = list(range(len(found.prompts)))
    for name, by_arm in subject["scores"].items():
        moved = [arm for arm in by_arm if by_arm[arm]["pictures"] and arm not in _GIVEN]
        if not moved or not by_arm.get(COPY, {}).get("pictures"):
            continue
        one, other = (np.array(by_arm[arm]["pictures"]) for arm in (moved[-1], COPY))
        sign = 1.0 if METRICS[name].more_is_better else -1.0
        gains = sign * (one - other).reshape(len(places), -1).mean(axis=1)
        return [int(place) for place in np.argsort(gains, kind="stable")]
    return places


def _rows(places: Sequence[int], found: DrawnSet, out: Path) -> list[Row]:
    rows = []
    for place in places:
        for seed in found.seeds[:_SEEDS]:
            links = [
                (arm, quote(place_from(found.path(Picture(arm, place, seed)), out)))
                for arm in found.arms
            ]
            rows.append(Row(f"{found.prompts[place]} (seed {seed})", links))
    return rows
