"""The doors of the package's wings, read off their `__init__`, and what stands behind them.

A door is a docstring: a sentence, a line per file (`name.py: what it is for.`), and for a whole
wing `Never: ...` (libraries; `files` means that it opens none) and, as its last line,
`May import: ...`.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ANYTHING = "anything"
_FILE = re.compile(r"^([\w/]+(?:\.py)?|[\w]+/): (\S.*)$")
_NEVER = re.compile(r"(\w+)(?: \(but in ([^)]*)\))?")


@dataclass(frozen=True)
class Door:
    """What a wing says about itself.

    Attributes:
        sentence: what it is for.
        files: names of its files and folders, in reading order.
        may: wings it may import beside itself; None for "anything".
        barred: wings that "anything" leaves out.
        never: libraries that it does without, and its files that may know them all the same.
    """

    sentence: str
    files: tuple[str, ...]
    may: frozenset[str] | None
    barred: frozenset[str]
    never: dict[str, frozenset[str]]

    def admits(self, wing: str) -> bool:
        """Whether the wing may import another one."""
        return wing not in self.barred if self.may is None else wing in self.may


def read_door(init: Path, *, wing: bool) -> Door:
    """The door of a wing, or of a folder in one.

    Raises:
        ValueError: it does not have the form above; the message says where.
    """
    tree = ast.parse(init.read_text())
    text = ast.get_docstring(tree)
    if text is None:
        raise ValueError("has no docstring")
    if wing and len(tree.body) > 1:
        raise ValueError("holds more than its docstring")
    sentence, _, rest = text.partition("\n\n")
    lines = [line for line in rest.splitlines() if line]
    may, barred, never = frozenset[str](), frozenset[str](), {}
    if wing:
        if not lines or not lines[-1].startswith("May import: "):
            raise ValueError("does not end in a line 'May import: ...'")
        may, barred = _may(lines.pop().removeprefix("May import: ").removesuffix("."))
        if lines and lines[-1].startswith("Never: "):
            said = lines.pop().removeprefix("Never: ")
            never = {m[1]: frozenset((m[2] or "").split(", ")) for m in _NEVER.finditer(said)}
    matches = [_FILE.match(line) for line in lines]
    if not all(matches):
        raise ValueError(f"line {lines[matches.index(None)]!r} is not 'file: what it is for.'")
    return Door(sentence, tuple(m[1] for m in matches if m), may, barred, never)


def _may(text: str) -> tuple[frozenset[str] | None, frozenset[str]]:
    kind, _, barred = text.partition(" but ")
    if kind == ANYTHING:
        return None, frozenset(barred.split(", ")) if barred else frozenset()
    return frozenset(text.split(", ")) - {"nothing"}, frozenset()


def listed_wrongly(folder: Path, door: Door) -> str | None:
    """What is wrong with a door's list of files."""
    there = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    twice = {name for name in door.files if door.files.count(name) > 1}
    if twice:
        return f"lists {sorted(twice)} twice"
    if missing := there - {*door.files}:
        return f"does not list {sorted(missing)}"
    if gone := {*door.files} - there:
        return f"lists {sorted(gone)}, which is not there"
    return None


def imports(tree: ast.Module, folder: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """`(line, dotted name)` of everything imported by a file in the package folder `folder`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the file's own folder, each further one the next folder up.
            above = folder[: len(folder) + 1 - node.level] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def called(node: ast.Call) -> str:
    """`f` of both `f(...)` and `x.f(...)`; empty for other calls."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Wings that import each other in a circle; empty when there is none."""
    done: set[str] = set()

    def visit(wing: str, trail: list[str]) -> list[str]:
        if wing in trail:
            return [*trail[trail.index(wing) :], wing]
        if wing in done:
            return []
        for other in sorted(graph.get(wing, ())):
            if found := visit(other, [*trail, wing]):
                return found
        done.add(wing)
        return []

    return next((found for wing in sorted(graph) if (found := visit(wing, []))), [])
