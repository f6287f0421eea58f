"""Write the table of docs/formats.md that says which test proves what, from the tests' own marks.

    python scripts/formats_table.py            write the table
    python scripts/formats_table.py --check    exit 1 when it is not up to date

A test that proves something of a format says so: `@pytest.mark.proves(family, what, oracle)`, what
being `read`, `migrate`, `write` or `refused`, and `family` one or a tuple of several. The marks are
read from the source, nothing is run: whether a proof holds is what the suite says.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "formats.md"
BEGIN, END = "<!-- proofs: made by scripts/formats_table.py -->\n", "<!-- end of proofs -->\n"
COLUMNS = ("read", "migrate", "write", "refused")


def proofs() -> Iterator[tuple[str, str, str, str]]:
    """(family, what, oracle, test) of every mark in tests/."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.proves":
                    family, what, oracle = (ast.literal_eval(word) for word in call.args)
                    if what not in COLUMNS:
                        raise SystemExit(
                            f"{path.name}:{node.lineno}: {what!r} is none of {COLUMNS}"
                        )
                    for one in (family,) if isinstance(family, str) else family:
                        yield one, what, oracle, f"{path.stem}::{node.name}"


def table() -> str:
    """The table in Markdown, families in alphabetical order."""
    found: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for family, what, oracle, test in proofs():
        found.setdefault(family, {}).setdefault(what, []).append((oracle, test))
    lines = ["| family | read | migrate | write | refused |", "|---|---|---|---|---|"]
    for family, by_what in sorted(found.items(), key=lambda item: item[0].lower()):
        cells = []
        for what in COLUMNS:
            entries = dict.fromkeys(by_what.get(what, []))
            cells.append("; ".join(f"{oracle} (`{test}`)" for oracle, test in entries))
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check the table."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = before + BEGIN + table() + END + after
    if "--check" in sys.argv[1:]:
        if made != text:
            print(f"{PAGE.name}: run python scripts/formats_table.py")
        return int(made != text)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
