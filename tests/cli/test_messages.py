"""Every exit says why, to people on stderr and to programs on stdout; names steer no terminal."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table
from safetensors.numpy import save_file

from prolora_jax.cli import console
from prolora_jax.cli.main import app, run
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io.outputs.manifest import export
from prolora_jax.plans.catalog_record import CatalogRecord

# Each command with what it needs before it would begin.
COMMANDS = {
    "demo": ["demo"],
    "inspect": ["inspect", "a.safetensors"],
    "subspaces build": ["subspaces", "build", "base"],
    "subspaces list": ["subspaces", "list"],
    "subspaces prune": ["subspaces", "prune"],
    "similarity": ["similarity", "--source", "a", "--target", "b"],
    "migrate": ["migrate", "a.safetensors", "--source", "a", "--target", "b", "--out", "o"],
    "refine": ["refine", "a.safetensors", "--source", "a", "--target", "b", "--out", "o"],
    "fleet run": ["fleet", "run", "c", "--source", "a", "--target", "b", "--out", "o"],
    "fleet status": ["fleet", "status", "o"],
    "fleet compact": ["fleet", "compact", "o"],
    "fleet verify": ["fleet", "verify", "o"],
    "fleet retry": ["fleet", "retry", "o", "--quarantined"],
    "status": ["status", "folder"],
    "convert": ["convert", "a.safetensors", "--to", "kohya", "--out", "o.safetensors"],
    "verify": ["verify", "a.safetensors"],
    "generate": ["generate", "--base", "b", "--prompt", "p"],
    "evaluate": ["evaluate", "--source", "a", "--target", "b", "--lora", "c", "--out", "o"],
    "diff": ["diff", "a.safetensors", "b.safetensors"],
    "benchmark bases": ["benchmark", "bases"],
    "benchmark migrate": ["benchmark", "migrate"],
    "benchmark catalog": ["benchmark", "catalog"],
}
FAILURES = {
    "refusal": (AdapterRefused("a: is bad", code=Refusal.NON_FINITE), 1, "refused", "non-finite"),
    "wrong": (UsageError("a: is wrong", code=Refusal.BAD_OPTION), 2, "usage-error", "bad-option"),
    "ctrl-c": (KeyboardInterrupt(), 130, "interrupted", "interrupted"),
    "internal": (RuntimeError("caf\u00e9 \x1b[2J"), 1, "internal-error", "internal-error"),
}


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("PROLORA_TRACEBACK", raising=False)


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one document on stdout."""
    said = capsys.readouterr().out
    assert said.isascii()
    return json.loads(said)


def test_every_command_is_here():
    names = {name for name in app if not name.startswith("-")}
    assert {name.split()[0] for name in COMMANDS} == names


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_failure_is_one_document(
    command: str, failure: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    error, exit_code, verdict, code = FAILURES[failure]

    def fails(*_: object, **__: object) -> None:
        raise error

    # Parsed for real; the error comes in place of the body of the command.
    monkeypatch.setattr("prolora_jax.cli.main.app", fails_after_parsing(fails))
    assert run([*COMMANDS[command], "--json", "-q"]) == exit_code
    found = document(capsys)
    assert (found["ok"], found["verdict"], found["code"]) == (False, verdict, code)
    assert str(error) in str(found["message"])


def fails_after_parsing(fails):
    """The app with its commands parsed as they are, and none of them run."""

    class Parsed:
        config = ()

        def __call__(self, arguments: list[str], **how: object):
            app.parse_args(arguments, exit_on_error=False, print_error=False)
            fails()

    return Parsed()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_one_document(command: str, capsys: pytest.CaptureFixture[str]):
    assert run([*COMMANDS[command], "--json", "--no-such-option"]) == 2
    found = document(capsys)
    assert (found["verdict"], found["code"]) == ("usage-error", "bad-option")
    assert "--no-such-option" in str(found["message"])


@pytest.mark.parametrize(
    "command", ["subspaces build", "similarity", "migrate", "status", "convert", "verify", "diff"]
)
def test_files_that_are_not_there_are_one_document(
    command: str, capsys: pytest.CaptureFixture[str]
):
    assert run([*COMMANDS[command], "--json", "-q"]) in (1, 2)
    assert document(capsys)["ok"] is False


def test_json_may_be_asked_for_in_the_config(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "options.yaml").write_text("json: true\n")
    assert run(["verify", "no.safetensors", "--config", "options.yaml"]) in (1, 2)
    assert document(capsys)["ok"] is False
    assert run(["verify", "no.safetensors"]) in (1, 2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words", ["status x --json=true --nope", "status --json=1", "status x --json=maybe"]
)
def test_json_with_a_value_is_json_also_where_the_command_is_wrong(words: str, capsys):
    assert run(words.split()) == 2
    assert document(capsys)["code"] == "bad-option"


@pytest.mark.parametrize("words", ["status -- --json", "status x --json=false --nope"])
def test_what_does_not_ask_for_json_gets_none(words: str, capsys):
    assert run(words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")


def test_a_file_may_be_called_as_the_option_is(capsys, tmp_path: Path):
    (tmp_path / "--json").write_bytes(b"junk")
    assert run(["inspect", "--json", "--", "--json"]) == 1
    assert document(capsys)["files"][0]["path"] == "--json"
    assert run(["inspect", "--", "--json"]) == 1
    assert capsys.readouterr().out.startswith("--json: refused")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--help --json", "Move LoRA adapters"),
        ("--json -h", "Move LoRA adapters"),
        ("migrate --help --json", "Usage: prolora migrate"),
        ("subspaces build --json=true --help", "Usage: prolora subspaces build"),
        ("--version --json", "0."),
    ],
)
def test_what_is_shown_is_one_document_under_json(words: str, said: str, capsys):
    assert run(words.split()) == 0
    found = document(capsys)
    assert (found["ok"], found["verdict"], found["code"]) == (True, "shown", None)
    assert said in found["message"]
    assert run([word for word in words.split() if not word.startswith("--json")]) == 0
    assert said in capsys.readouterr().out


def test_json_in_the_config_holds_where_the_command_is_wrong(capsys, tmp_path: Path):
    (tmp_path / "options.yaml").write_text("json: true\n")
    assert run(["status", "x", "--config=options.yaml", "--nope"]) == 2
    assert document(capsys)["code"] == "bad-option"
    (tmp_path / "list.yaml").write_text("- json\n")
    assert run(["status", "x", "--json", "--config", "list.yaml"]) == 2
    assert document(capsys)["ok"] is False


def test_a_command_that_printed_its_document_prints_no_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert run(["inspect", "no.safetensors", "--json"]) == 2
    assert document(capsys)["files"]

    def prints_and_fails():
        console.write_json({"done": 1})
        raise RuntimeError

    monkeypatch.setattr("prolora_jax.cli.main.app", fails_after_parsing(prints_and_fails))
    assert run(["subspaces", "list", "--json"]) == 1
    assert document(capsys) == {"done": 1}


def test_json_is_ascii_and_has_no_nan(capsys: pytest.CaptureFixture[str]):
    console.write_json({"name": "caf\u00e9 \U0001f600 \udcff", "phi": [float("nan"), 0.5]})
    assert document(capsys) == {"name": "caf\u00e9 \U0001f600 \udcff", "phi": [None, 0.5]}
    console.write_json_text('{"name": "\U0001f600"}')
    assert document(capsys) == {"name": "\U0001f600"}


def test_an_internal_error_names_the_file_with_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def fails():
        raise RuntimeError("of ours")

    monkeypatch.setattr("prolora_jax.cli.main.app", fails_after_parsing(fails))
    assert run(["subspaces", "list"]) == 1
    said = capsys.readouterr().err
    found = re.search(r"The traceback is in (\S+);", said)
    assert found
    assert Path(found[1]).parent == tmp_path
    assert "RuntimeError: of ours" in Path(found[1]).read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no" / "folder"))
    assert run(["subspaces", "list"]) == 1
    assert "Set PROLORA_TRACEBACK=1" in capsys.readouterr().err


HOSTILE = "[/x][red]:smile: \x1b[2J \x9b \u202e txt\r\x07"


def test_names_are_shown_as_they_stand_without_control_characters(
    capsys: pytest.CaptureFixture[str],
):
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.out().print(table)
    console.out().print(HOSTILE)
    console.show_error(HOSTILE)
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert text.count("[/x][red]:smile:") == 5
    assert not set(text) & set("\x1b\x9b\u202e\r\x07")


@pytest.mark.parametrize(
    "setting", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_any_encoding_of_a_console_will_do(
    setting: dict[str, str], more: list[str], tmp_path: Path
):
    name = "\u65e5\u672c.safetensors"
    (tmp_path / name).write_bytes(b"junk")
    command = [sys.executable, "-m", "prolora_jax", "inspect", name, *more]
    environment = os.environ | {"PYTHONCOERCECLOCALE": "0"} | setting
    done = subprocess.run(
        command, capture_output=True, env=environment, cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert b"internal error" not in done.stderr
    assert b".safetensors" in done.stdout


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_a_table_is_a_formula(start: str, tmp_path: Path):
    name = f"{start}cmd|'/C calc'!A0"
    export([CatalogRecord(name, None, "refused", "refused")], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert f"'{name}" in cells
    assert not any(cell.startswith(start) for cell in cells)


@pytest.mark.parametrize(("number", "exit_code"), [(1.0, 0), (2.0, 1)])
def test_inspect_sees_a_module_in_two_spellings(
    number: float, exit_code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    base = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = "lora_unet_" + base.replace(".", "_")
    factor = np.ones((2, 2), np.float32)
    tensors = {}
    for name, value in ((f"{flat}.lora_down", 1.0), (f"{flat}.lora_up", 1.0)):
        tensors[f"{name}.weight"] = factor * value
    tensors[f"unet.{base}.lora_A.weight"] = factor * number
    tensors[f"unet.{base}.lora_B.weight"] = factor
    save_file(tensors, tmp_path / "a.safetensors")
    assert run(["inspect", "a.safetensors", "--json"]) == exit_code
    (found,) = document(capsys)["files"]
    assert found.get("reason") == (None if exit_code == 0 else "duplicate-module")
