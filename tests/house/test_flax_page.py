"""The examples of docs/flax.md run as printed on tiny pipelines; one of them in tests/stock."""

import re
import shlex
from functools import partial
from pathlib import Path

import jax
import pytest
import unets
from flax_page import PAGE, examples, write_files
from PIL import Image

from prolora_jax.cli.main import run

EXAMPLES = examples("test")
DRAWN = re.compile(r"<!-- picture:.*?-->\n```sh\n(.*?)```", re.DOTALL)
COMMANDS = DRAWN.findall(PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("flax"))


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PROLORA_STORE", str(folder / "store"))
    monkeypatch.setenv("PROLORA_TRACEBACK", "1")
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=unets.QUICK))


def test_there_are_examples():
    assert (len(EXAMPLES), len(COMMANDS)) == (5, 2)


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_example(index, capsys):
    # As a user's JAX is set; the suite's own is stricter.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(EXAMPLES[index], f"docs/flax.md, example {index}", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("index", range(len(COMMANDS)))
def test_command(index, folder, tmp_path, capsys):
    program, *words = shlex.split(COMMANDS[index].replace("\\\n", " "))
    assert program == "prolora"
    out = words[words.index("--out") + 1]
    (folder / out).unlink(missing_ok=True)
    assert run([*words, "-q"]) == 0
    assert f"Wrote {out}" in capsys.readouterr().out
    with Image.open(folder / out) as sheet:
        assert min(sheet.size) > 128
