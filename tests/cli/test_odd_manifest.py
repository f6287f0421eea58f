"""A manifest that another program has changed: a refusal or a listed outcome, no traceback."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from small_adapters import write
from toy_pair import ToyFiles, make_files

from prolora_jax.cli.main import run

ODD = {
    "no output": "output = NULL",
    "output above": "output = '../../evil.safetensors'",
    "output elsewhere": "output = '/etc/passwd'",
    "output is the folder": "output = '.'",
    "output is a number": "output = 3",
    "output of another": "output = 'b.safetensors'",
    "output with a zero": "output = 'a' || char(0) || 'b'",
    "output of bytes": "output = x'fffe'",
    "preview above": "preview = '../page.html'",
    "state": "state = 'odd'",
    "planned": "state = 'planned'",
    "duplicate of none": "state = 'duplicate', duplicate_of = 'nothing'",
    "modules are many": "modules = 4611686018427387904",
    "modules are text": "modules = 'x'",
    "less than none": "modules = -5, moved = -9, phi_mean = -5, energy_moved = -1e300",
    "endless": "phi_mean = 9e999, energy_in = 9e999, energy_moved = 9e999, seconds = 9e999",
    "deep": "skipped = printf('%.*c', 100000, '[')",
    "endless number": """skipped = '{"a": 1e999}'""",
    "no JSON": "flags = NULL",
    "hash": "output_hash = NULL, input_hash = 3.5",
    "stamp": "output_stamp = 7, input_stamp = x'00'",
    "job": "job = x'fffe'",
}
REFUSED = {
    *("no output", "output above", "output elsewhere", "output is the folder"),
    *("output is a number", "output with a zero", "output of bytes", "preview above", "state"),
    *("endless", "modules are text", "deep", "endless number", "no JSON", "hash", "stamp", "job"),
}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def job(toys: ToyFiles) -> list[str]:
    given = toys.adapter.parent / "in"
    given.mkdir()
    for n, name in enumerate(("a", "b")):
        write(given / f"{name}.safetensors", n, (4,), ("0.attn2.to_q",))
    bases = ["--source", str(toys.source), "--target", str(toys.target)]
    return ["migrate", str(given), *bases, "--method", "copy", "--match", "name", "--out"]


@pytest.fixture(scope="module")
def made(toys: ToyFiles, job: list[str]) -> Path:
    out = toys.adapter.parent / "out"
    assert run([*job, str(out), "-q"]) == 0
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PROLORA_TRACEBACK", "1")
    yield Path(shutil.copytree(made, tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "page.html") == ["out"]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_row_is_refused_or_listed(odd: str, out: Path, job: list[str], capsys):
    capsys.readouterr()
    with closing(sqlite3.connect(out / "manifest.sqlite")) as database, database:
        database.execute(f"UPDATE records SET {ODD[odd]} WHERE input = 'a.safetensors'")
    page = ["--report", str(out.parent / "page.html")]
    commands = [["status", str(out), *page], ["verify", str(out)], [*job, str(out)]]
    for command in commands:
        code = run([*command, "--json", "-q"])
        found = json.loads(capsys.readouterr().out)
        if odd in REFUSED:
            assert (code, found["code"]) == (2, "bad-report")
            assert "cannot be read as a manifest" in found["message"]
        elif command[0] == "verify":
            listed = {"output of another"}
            assert code == (1 if odd in listed else 0)
            assert ("a.safetensors" in found["problems"]) == (odd in listed)
        else:
            # What is at its place by now no run has made, as far as the row says.
            assert code == (1 if command[0] == "migrate" and odd == "output of another" else 0)
    if odd not in REFUSED:
        assert run([*job, str(out), "-q", "--overwrite"]) == 0
        assert run(["verify", str(out), "--json", "-q"]) == 0


def test_rows_that_belong_to_no_input_are_refused_or_dropped(out: Path, job: list[str], capsys):
    with closing(sqlite3.connect(out / "manifest.sqlite")) as database, database:
        names = [row[1] for row in database.execute("PRAGMA table_info(records)")][1:]
        columns = ", ".join(names)
        database.execute(
            f"INSERT INTO records SELECT 'more', {columns} FROM records WHERE input LIKE 'a%'"
        )
    capsys.readouterr()
    assert run(["status", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 3
    assert run([*job, str(out), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["files"] == 2
    with closing(sqlite3.connect(out / "manifest.sqlite")) as database, database:
        database.execute("INSERT INTO records (input) VALUES ('bare')")
    for command in (["status", str(out)], ["verify", str(out)], [*job, str(out)]):
        assert run([*command, "--json", "-q"]) == 2
        assert json.loads(capsys.readouterr().out)["code"] == "bad-report"
