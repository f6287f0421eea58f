"""Ways to break a document at the level of its values, and a row of a database (`fuzz_others`)."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutations import BYTES, NAMES, Rng, pick

_RAW = "@@raw@@"
# Texts that stand in a document as they are: some are no JSON.
RAW = ["NaN", "-Infinity", "1e400", "-0", "9" * 5000, "9" * 400, str(2**63), str(2**64), "1e308"]
RAW += ["[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[" * 100_000, "", "nul", "'a'"]
RAW += [json.dumps("x" * 200_000), '"\\ud800"', '"\\u0000"', "0x10", "!!python/name:os.system"]
RAW += ["*x", "&x [*x]", "!!int ''", "2001-99-99", "<<: 1", "[" + "1," * 20_000 + "1]"]
VALUES: list[Any] = [None, True, False, 0, -1, 1, 0.5, 2**31, 2**53 + 1, -(2**63), 1e300, 1e-320]
VALUES += [[], {}, [[]], [None], "", "a", "1", {"a": {"b": [1]}}, *NAMES[:-3], "../../etc/passwd"]
VALUES += ["/dev/zero", "/etc", "~", "file:///x", "(a+)+$", ".*.*.*.*.*.*!", "\u202etxt", "[/red]"]


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container and key in a document."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            _places(value[key], found)
    return found


def edited(rng: Rng, content: bytes) -> bytes:
    """A JSON document with one to three of its values, keys or items changed."""
    try:
        document = json.loads(content)
        raw = None
        for _ in range(pick(rng, [1, 1, 2, 3])):
            places = _places(document, [])
            if not places:
                break
            box, key = pick(rng, places)
            raw = _edit(rng, box, key) or raw
        text = json.dumps(document)
    except (ValueError, RecursionError, TypeError, OverflowError):
        return content  # an earlier mutation left nothing to edit
    if raw is not None:
        text = text.replace(json.dumps(_RAW), raw)
    return text.encode("utf-8", "surrogatepass")


def _edit(rng: Rng, box: Any, key: Any) -> str | None:
    """Change one value; the answer is a text that is to stand where `_RAW` does."""
    kind = int(rng.integers(6))
    if kind == 0:
        del box[key]
    elif kind == 1:
        box[key] = pick(rng, VALUES)
    elif kind == 2:
        box[key] = _RAW
        return pick(rng, RAW)
    elif kind == 3 and isinstance(box, dict):
        box[pick(rng, NAMES[:-3])] = box.pop(key)
    elif kind == 4 and isinstance(box, list):
        box.extend([box[key]] * pick(rng, [1, 2, 1000]))
    elif isinstance(box[key], int | float):
        with np.errstate(all="ignore"):
            box[key] = pick(rng, [-box[key], box[key] * 2**40, box[key] + 1e-9, str(box[key])])
    elif isinstance(box[key], str):
        box[key] = pick(rng, [box[key] * 500, box[key][:-1], "../../" + box[key], [box[key]]])
    else:
        box[key] = pick(rng, [[box[key]], {"a": box[key]}, str(box[key])])
    return None


def lines(rng: Rng, content: bytes) -> bytes:
    """A text (YAML, Markdown) with the value of a line changed, or a line twice or gone."""
    parts = content.split(b"\n")
    at = int(rng.integers(len(parts)))
    kind = int(rng.integers(4))
    if kind == 0:
        parts.insert(at, parts[int(rng.integers(len(parts)))])
    elif kind == 1:
        del parts[at]
    else:
        name = parts[at].partition(b":")[0]
        new = pick(rng, RAW) if kind == 2 else json.dumps(pick(rng, VALUES))
        parts[at] = name + b": " + new.encode("utf-8", "surrogatepass")
    return b"\n".join(parts)


def broken(rng: Rng, name: str, content: bytes) -> tuple[bytes, list[str]]:
    """The content of a file broken in one to three ways, and the ways."""
    recipe = []
    texts = (".json", ".info", ".yaml", ".md", ".txt")
    document = name.endswith(texts) or content[:1] == b"{"
    for _ in range(pick(rng, [1, 1, 2, 3])):
        if document and rng.random() < 0.7:
            mutate = edited if content[:1] == b"{" else lines
        else:
            mutate = pick(rng, BYTES)
        recipe.append(mutate.__name__)
        content = mutate(rng, content)
    return content, recipe


def broken_row(rng: Rng, path: Path) -> list[str]:
    """One field of a manifest, of a record or a fact, set to something odd."""
    database = sqlite3.connect(path)
    with database:
        table = pick(rng, ["records", "records", "facts"])
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        column = pick(rng, columns)
        value = pick(rng, [*VALUES, *RAW])
        if isinstance(value, dict | list):
            value = json.dumps(value)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = str(value)
        if isinstance(value, str) and rng.random() < 0.3:
            value = value.encode("utf-8", "surrogatepass")
        keyed = columns[0]
        keys = [row[0] for row in database.execute(f"SELECT {keyed} FROM {table}")]
        command = f"UPDATE OR REPLACE {table} SET {column} = ? WHERE {keyed} = ?"
        try:
            database.execute(command, (value, pick(rng, keys)))
        except (sqlite3.Error, UnicodeError):
            database.execute(command, (b"\xff\x00", pick(rng, keys)))
    database.close()
    return [f"{table}.{column}"]
