"""The examples of README and docs run as printed, on small files; every link leads somewhere."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_pair import make_files

from prolora_jax.cli import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.compile(r"<!-- test:.*?-->\n```(\w+)\n(.*?)```", re.DOTALL)
PAGES = ("README.md", "docs/catalog.md", "docs/python.md")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files under the names that the examples use."""
    place = tmp_path_factory.mktemp("readme") / "made"
    files = make_files(place.with_name("toys"))
    shutil.copytree(files.source, place / "sdxl")
    shutil.copytree(files.target, place / "ssd-1b")
    shutil.copy(files.adapter, place / "style.safetensors")
    for name in ("a", "b/c"):
        (place / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files.adapter, place / "loras" / f"{name}.safetensors")
    return place


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """These files, untouched by the other pages, and one store for all of them."""
    monkeypatch.setenv("PROLORA_STORE", str(made.with_name("store")))
    return shutil.copytree(made, tmp_path / "folder")


def examples(page: str, language: str) -> list[str]:
    """The code of a page's examples, in order."""
    found = EXAMPLE.findall((ROOT / page).read_text())
    return [code for kind, code in found if kind == language]


def commands(page: str) -> list[list[str]]:
    """The commands of a page, as words; comments are left out."""
    lines = [line for code in examples(page, "sh") for line in code.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


PYTHON = [(page, code) for page in PAGES for code in examples(page, "python")]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


PROGRESS = re.compile(r"[a-z ]+: \d+ of \d+(, \d.* left)?")
"""What a command says on stderr where the machine is slow, and nothing is wrong."""


@pytest.fixture
def run_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str], None]:
    """Runs the commands of a page in this process, which has imported and compiled already."""
    monkeypatch.chdir(folder)

    def run_them(page: str) -> None:
        for name, *arguments in commands(page):
            assert name == "prolora"
            code, told = main.run(arguments), capfd.readouterr().err
            said = [line for line in told.splitlines() if not PROGRESS.fullmatch(line)]
            assert (code, said) == (0, []), f"{arguments}\n{told}"

    return run_them


def test_commands_of_readme(folder: Path, run_commands: Callable[[str], None]):
    named = {words[1] for words in commands("README.md")}
    assert named == {"similarity", "migrate", "verify", "status"}
    run_commands("README.md")
    assert (folder / "style.ssd-1b.safetensors.report.json").is_file()
    assert (folder / "loras-ssd-1b" / "b" / "c.safetensors").is_file()


def test_commands_of_the_catalogs_page(folder: Path, run_commands: Callable[[str], None]):
    assert len(commands("docs/catalog.md")) >= 5
    run_commands("docs/catalog.md")
    assert (folder / "loras-ssd-1b" / "b" / "c.safetensors").is_file()
    assert all((folder / name).stat().st_size for name in ("page.html", "loras.csv"))
    assert (folder / "both.safetensors.report.json").is_file()


@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_python(folder: Path, index: int):
    done = run([sys.executable, "-c", PYTHON[index][1]], folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_table_of_proofs_is_that_of_the_tests():
    script = str(ROOT / "scripts" / "formats_table.py")
    done = run([sys.executable, script, "--check"], ROOT)
    assert (done.returncode, done.stdout) == (0, "")


LINK = re.compile(r"\]\(([^)#\s]+)\)")
LINKED = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
)


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page: str):
    links = LINK.findall((ROOT / page).read_text())
    gone = [
        link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()
    ]
    assert gone == []


def test_readme_names_every_page():
    readme = (ROOT / "README.md").read_text()
    pages = [f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")]
    assert [page for page in pages if page not in readme] == []
