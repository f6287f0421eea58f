"""The examples of README and docs run as printed, on the demo's files."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_pair import make_files

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.compile(r"<!-- test:.*?-->\n```(\w+)\n(.*?)```", re.DOTALL)
PAGES = ("README.md", "docs/python.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's files under the names that the examples use."""
    place = tmp_path_factory.mktemp("readme")
    files = make_files(place / "made")
    shutil.copytree(files.source, place / "sdxl")
    shutil.copytree(files.target, place / "ssd-1b")
    shutil.copy(files.adapter, place / "style.safetensors")
    for name in ("a", "b/c"):
        (place / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files.adapter, place / "loras" / f"{name}.safetensors")
    return place


def examples(language: str) -> list[str]:
    found = [match for page in PAGES for match in EXAMPLE.findall((ROOT / page).read_text())]
    return [code for kind, code in found if kind == language]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PROLORA_STORE": str(folder / "store")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_commands(folder: Path):
    lines = [line for code in examples("sh") for line in code.splitlines() if line]
    assert len(lines) >= 5
    for line in lines:
        name, *arguments = shlex.split(line)
        assert name == "prolora"
        done = run([sys.executable, "-m", "prolora_jax", *arguments], folder)
        assert (done.returncode, done.stderr) == (0, ""), f"{line}\n{done.stderr}"
    assert (folder / "similarity.png").stat().st_size > 10_000
    assert (folder / "style.ssd-1b.safetensors.report.json").is_file()
    assert (folder / "loras-ssd-1b" / "b" / "c.safetensors").is_file()


@pytest.mark.parametrize("index", range(len(examples("python"))))
def test_python(folder: Path, index: int):
    done = run([sys.executable, "-c", examples("python")[index]], folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_table_of_proofs_is_that_of_the_tests():
    script = str(ROOT / "scripts" / "formats_table.py")
    done = run([sys.executable, script, "--check"], ROOT)
    assert (done.returncode, done.stdout) == (0, "")
