"""A command parses, makes one call and prints: the job belongs to the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

from prolora_jax.cli.main import app

CLI = Path(__file__).resolve().parents[2] / "prolora_jax" / "cli"
MOST_LINES = 40


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods, also those inside of others."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function, its signature and docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def too_long(file: Path) -> list[str]:
    """Every function of a file with more than `MOST_LINES` lines."""
    return [
        f"{file.name}: {function.name} has {body_lines(function)} lines"
        for function in functions(ast.parse(file.read_text()))
        if body_lines(function) > MOST_LINES
    ]


def commands() -> list[Path]:
    """The files of commands, and what they are made of; what only lays out tables is not."""
    return [file for file in sorted(CLI.glob("*.py")) if not file.stem.endswith("tables")]


def test_every_command_is_looked_at():
    names = {name for name in app if not name.startswith("-")}
    assert names >= {"migrate", "generate", "verify"}
    assert names <= {file.stem for file in commands()}


def test_commands_are_short():
    assert [line for file in commands() for line in too_long(file)] == []


def test_a_command_with_a_job_in_it_is_seen(tmp_path: Path):
    file = tmp_path / "migrate.py"
    signature = "def migrate(\n    *,\n    a: int,\n    b: int,\n) -> int:\n"
    text = '    """What it does.\n\n    In two lines.\n    """\n'
    file.write_text(signature + text + "    a += b\n" * MOST_LINES)
    assert too_long(file) == []
    file.write_text(signature + text + "    a += b\n" * (MOST_LINES + 1))
    assert too_long(file) == ["migrate.py: migrate has 41 lines"]
    file.write_text(
        "class Job:\n" + "".join(f"    {line}\n" for line in file.read_text().split("\n"))
    )
    assert too_long(file) == ["migrate.py: migrate has 41 lines"]
