"""How many values a msgpack document has, counted before any of them is made.

A megabyte can be a million numbers, which become a hundred megabytes of objects; a tree of named
arrays has a few thousand values, whatever its size.
"""

MOST_VALUES = 200_000
"""The largest tree that is read, a pipeline's, has about 10,000 arrays of up to 7 values."""

# First byte of a value -> kind, bytes of its length.
SIZED = {
    **{0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4)},
    **{0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4)},
    **{0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4)},
    **{0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)},
}
# The same for values of one length: bytes that follow.
UNSIGNED = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
OTHER = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
FIXED_EXTENSION = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_FIXED = {**UNSIGNED, **OTHER, **{first: size + 1 for first, size in FIXED_EXTENSION.items()}}
_INNER = {"list": 1, "map": 2}


class TooManyValues(ValueError):
    """Raised when a document has more values than are read."""

    def __init__(self) -> None:
        super().__init__(f"more than {MOST_VALUES} values")


def require_few_values(content: bytes) -> None:
    """Walk over a document from header to header, extensions and bytes in one step.

    Args:
        content: the document. One that is cut off ends the walk: who reads it will see.

    Raises:
        TooManyValues: it has, or claims, more than `MOST_VALUES`.
    """
    at, done, waiting = 0, 0, 1
    while waiting and at < len(content):
        first = content[at]
        at, done, waiting = at + 1, done + 1, waiting - 1
        if first < 0x80 or first >= 0xE0:
            continue
        if first < 0x90:
            waiting += 2 * (first - 0x80)
        elif first < 0xA0:
            waiting += first - 0x90
        elif first < 0xC0:
            at += first - 0xA0
        elif first in SIZED:
            kind, width = SIZED[first]
            size = int.from_bytes(content[at : at + width])
            at += width
            if kind in _INNER:
                waiting += _INNER[kind] * size
            else:
                at += size + (kind == "extension")
        else:
            at += _FIXED.get(first, 0)
        if done + waiting > MOST_VALUES:
            raise TooManyValues
