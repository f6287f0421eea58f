"""Fields of a report's JSON that no report has: reading passes over them in silence."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec

TWICE = "(twice)"
"""What stands behind the name of a field that its object has more than once."""


def unknown_fields(document: object, told: object) -> tuple[str, ...]:
    """Fields of a document that are no fields of what was read from it.

    Args:
        document: as plain dicts and lists.
        told: a report that was read from it.

    Returns:
        Where they stand: `modules.3.note`.
    """
    return tuple(_beyond(document, msgspec.to_builtins(told), ()))


def unknown_in_text(text: bytes, told: object) -> tuple[str, ...]:
    """The same of a document's text, in which a field may stand twice, too.

    Args:
        text: JSON, which `told` was read from.
        told: the report.
    """
    try:
        # Numbers as text: one of 10,000 digits is no number for `int`.
        document = json.loads(text, object_pairs_hook=_with_repeats, parse_int=str)
    except (ValueError, RecursionError):
        return ("one that is nested too deep",)
    return unknown_fields(document, told)


def _with_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        found[f"{name} {TWICE}" if name in found else name] = value
    return found


def _beyond(document: object, known: object, place: tuple[str, ...]) -> Iterator[str]:
    if isinstance(document, dict) and isinstance(known, dict):
        for name, value in document.items():
            here = (*place, str(name))
            if name in known:
                yield from _beyond(value, known[name], here)
            else:
                yield ".".join(here)
    elif isinstance(document, list | tuple) and isinstance(known, list | tuple):
        for number, (value, other) in enumerate(zip(document, known, strict=False)):
            yield from _beyond(value, other, (*place, str(number)))
