"""Scores as tables for spreadsheets: an arm a line, and a picture a line."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from prolora_jax.evaluation.judging.request import DrawnSet
from prolora_jax.io import atomic

_OF_ARMS = (
    *("adapter", "arm", "metric", "value", "low", "high"),
    *("against copy", "against copy, low", "against copy, high", "details"),
)


def write_tables(document: Mapping[str, Any], sets: Sequence[DrawnSet], out: Path) -> None:
    """Write `table.csv` and `pictures.csv`.

    Args:
        document: of `evaluation.json`.
        sets: the pictures of its subjects, in their order.
        out: folder.

    Raises:
        OutputError: a file cannot be written.
    """
    atomic.write_text(out / "table.csv", _csv(_OF_ARMS, _arms(document)))
    names = [m for m in document["metrics"] if _has_pictures(document, m)]
    head = ("adapter", "arm", "prompt", "seed", "file", *names)
    atomic.write_text(out / "pictures.csv", _csv(head, _pictures(document, sets, names, out)))


def _has_pictures(document: Mapping[str, Any], metric: str) -> bool:
    return any(
        score["pictures"] for s in document["subjects"] for score in s["scores"][metric].values()
    )


def _arms(document: Mapping[str, Any]) -> Iterator[list[Any]]:
    for subject in document["subjects"]:
        for metric, by_arm in subject["scores"].items():
            for arm, score in by_arm.items():
                beside = score["against_copy"] or ("", "", "")
                details = " ".join(f"{k}={v}" for k, v in score["details"].items())
                interval = score["interval"] or ("", "")
                yield [subject["name"], arm, metric, score["value"], *interval, *beside, details]


def _pictures(
    document: Mapping[str, Any], sets: Sequence[DrawnSet], names: Sequence[str], out: Path
) -> Iterator[list[Any]]:
    for subject, found in zip(document["subjects"], sets, strict=True):
        for arm in found.arms:
            for place, picture in enumerate(found.pictures(arm)):
                by_arm = [subject["scores"][name].get(arm) for name in names]
                scores = ["" if one is None else one["pictures"][place] for one in by_arm]
                path = place_from(found.path(picture), out)
                prompt = found.prompts[picture.prompt]
                yield [subject["name"], arm, prompt, picture.seed, path, *scores]


def place_from(path: Path, folder: Path) -> str:
    """Where a file is, seen from a folder; with slashes."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _csv(head: Sequence[str], rows: Iterator[list[Any]]) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_no_formula(cell) for cell in row] for row in rows)
    return text.getvalue()


def _no_formula(cell: Any) -> Any:
    """A spreadsheet runs what begins like a formula; prompts and names may."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" and cell else cell
