"""Whether what people write beside an adapter forbids derivatives; a migrated adapter is one.

Looked at are fields that say so, never prose: `allowDerivatives` of Civitai's API, in a document or
nested in it, and licence names with "no derivatives" in them (Creative Commons' ND licences).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_ALLOWS = "allowderivatives"
_NAMES = frozenset({"license", "licence", "license_name", "license_link", "modelspec.license"})
_NO_DERIVATIVES = re.compile(r"\bby([- ]nc)?[- ]nd\b|\bno[- ]?deriv", re.IGNORECASE)
_NO = frozenset({"false", "no", "0"})
_DEPTH = 8


def forbidding_field(document: object) -> str | None:
    """The field that forbids derivatives, and what it says: `model.allowDerivatives: False`.

    Args:
        document: a parsed sidecar, or the header strings of a file; lists in it (of pictures,
            of other versions) are not looked at.

    Returns:
        None where nothing forbids them.
    """
    for place, value in _fields(document, ()):
        name = place[-1].lower()
        if _is_allowance(name) and str(value).strip().lower() in _NO:
            return f"{'.'.join(place)}: {value}"
        if name in _NAMES and isinstance(value, str) and _NO_DERIVATIVES.search(value):
            return f"{'.'.join(place)}: {value[:80]}"
    return None


def _is_allowance(name: str) -> bool:
    return name.replace("_", "") == _ALLOWS


def _fields(value: object, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Places that may say so, and what stands there; headers have a hundred others."""
    if not isinstance(value, Mapping) or len(place) > _DEPTH:
        return
    for key, inner in value.items():
        if type(inner) is not str and isinstance(inner, Mapping):
            yield from _fields(inner, (*place, str(key)))
            continue
        name = str(key).lower()
        if name in _NAMES or _is_allowance(name):
            yield (*place, str(key)), inner
