"""The public names, and what merely importing or asking for help must not do: start jax.

Importing jax costs a second, and on an accelerator may claim it; `inspect`, `convert`, `--help`
and every program that imports the package for its records do without.
"""

import re
import subprocess
import sys
from pathlib import Path

from patience import UNTIL_HUNG

import prolora_jax

ROOT = Path(__file__).resolve().parents[2]

NAMES_TOWER = [
    "layout",
    "architectures.spec",
    "architectures.naming",
    "adapters.adapter",
    "adapters.formats.parsing",
    "adapters.formats.dumping",
    "matching.matching",
    "plans.options",
    "plans.plan",
    "plans.report",
    "method.encoding",
    "errors",
    "verification.dense",
    "verification.adapter",
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: in this one pytest and its plug-ins have imported jax long ago.
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=UNTIL_HUNG, cwd=ROOT
    )


def jax_after(code: str) -> str:
    found = "[m for m in ('jax', 'jaxlib', 'flax') if m in sys.modules]"
    done = run("-c", f"import sys\n{code}\nprint({found})")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_jax_would_be_noticed():
    assert jax_after("import jax") == "['jax', 'jaxlib']"


def test_import_does_not_import_jax():
    assert jax_after("import prolora_jax") == "[]"


def test_names_tower_does_not_import_jax():
    # test_walls.py sees direct imports only; this one sees what they bring along.
    code = "\n".join(f"import prolora_jax.{name}" for name in NAMES_TOWER)
    assert jax_after(code) == "[]"


def test_help_does_not_import_jax():
    done = run("-X", "importtime", "-m", "prolora_jax", "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, flags=re.MULTILINE))
    assert "prolora_jax" in imported
    assert not imported & {"jax", "jaxlib", "flax"}
    assert "migrate" in done.stdout


def test_every_public_name_resolves():
    names = prolora_jax.__all__
    assert len(names) == len(set(names)) > 0
    for name in names:
        assert getattr(prolora_jax, name) is not None
    assert set(names) <= set(dir(prolora_jax))


def test_no_public_name_is_a_modules():
    """A module that is imported becomes an attribute of its package, over any other of its name."""
    modules = {path.stem for path in (ROOT / "prolora_jax").iterdir()}
    assert modules.isdisjoint(prolora_jax.__all__)


def test_every_public_name_is_documented():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    words = set(re.findall(r"\w+", text))
    assert [name for name in prolora_jax.__all__ if name not in words] == []
