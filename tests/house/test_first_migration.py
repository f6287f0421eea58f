"""docs/first-migration.md: its commands run on the demo's files and print what is shown."""

import re
import shlex
from pathlib import Path

import pytest

from prolora_jax.cli.main import run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "first-migration.md").read_text()
FILES = re.findall(r"<!-- files:.*?-->\n```python\n(.*?)```", PAGE, re.DOTALL)
SESSIONS = re.findall(r"<!-- session:.*?-->\n```console\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = re.findall(r"<!-- test:.*?-->\n```python\n(.*?)```", PAGE, re.DOTALL)
FRACTION = re.compile(r"\d+\.\d+(e[-+]\d+)?")


def lines_of(output: str) -> list[str]:
    """Its lines without frames and widths; fractions, which another machine may round, as `#`."""
    plain = FRACTION.sub("#", re.sub(r"[\u2500-\u257f]", " ", output))
    return [" ".join(line.split()) for line in plain.splitlines() if line.split()]


def test_sessions_and_example(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "store"))
    (files,), (example,) = FILES, EXAMPLES
    exec(compile(files, "docs/first-migration.md, files", "exec"), {})
    assert len(SESSIONS) == 7
    for session in SESSIONS:
        command, _, shown = session.partition("\n")
        prompt, program, *words = shlex.split(command)
        assert (prompt, program) == ("$", "prolora")
        capsys.readouterr()
        assert run(words) == 0
        printed = lines_of(capsys.readouterr().out)
        missing = [line for line in lines_of(shown) if line != "..." and line not in printed]
        assert missing == [], command
    exec(compile(example, "docs/first-migration.md, example", "exec"), {})
    assert (tmp_path / "style.subspace.safetensors").is_file()
    assert (tmp_path / "similarity.png").stat().st_size > 10_000


def test_a_wrong_line_is_seen():
    assert lines_of("\u2502 rank \u2502 0.12  8 \u2502\n\n") == ["rank # 8"]
    assert lines_of("52 modules") != lines_of("53 modules")
