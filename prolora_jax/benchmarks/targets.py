"""What a benchmark aims at, and whether it was met. A figure that is not a number meets nothing."""

from typing import Any

Verdict = dict[str, Any]


def at_least(
    case: str, what: str, limit: float, found: float, stretch: float | None = None
) -> Verdict:
    """A figure that should be large.

    Args:
        case: what it was measured on.
        what: the figure.
        limit: the least that meets the target.
        found: what was measured.
        stretch: what would be better still; it decides nothing.
    """
    verdict = {"case": case, "what": what, "at_least": limit, "found": found}
    if stretch is not None:
        verdict |= {"stretch": stretch, "stretch_met": found >= stretch}
    return {**verdict, "met": found >= limit}


def at_most(case: str, what: str, limit: float, found: float) -> Verdict:
    """A figure that should be small; arguments as in `at_least`."""
    return {"case": case, "what": what, "at_most": limit, "found": found, "met": found <= limit}
