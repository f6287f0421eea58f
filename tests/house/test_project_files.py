"""The files around the package say what is true: how to cite it, its hooks, that it is typed."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CFF_REQUIRES = {"cff-version", "message", "title", "authors"}
"""The keys that Citation File Format 1.2.0 requires."""


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_is_of_this_version():
    cited = read_yaml("CITATION.cff")
    assert cited.keys() >= CFF_REQUIRES
    assert cited["cff-version"] == "1.2.0"
    project = PROJECT["project"]
    for key in ("version", "license", "keywords"):
        assert cited[key] == project[key]
    assert cited["title"] == project["name"]
    assert cited["authors"] == [{"name": "The prolora_jax developers"}]


def test_the_citation_names_the_paper():
    (paper,) = read_yaml("CITATION.cff")["references"]
    assert paper.keys() >= {"type", "title", "authors"}  # Citation File Format requires these
    assert [author["family-names"] for author in paper["authors"]] == [
        "Farhadzadeh",
        "Das",
        "Borse",
        "Porikli",
    ]
    assert paper["year"] == 2025
    assert paper["url"].rpartition("/")[2] == "2506.04244"
    assert "arXiv:2506.04244" in [one["value"] for one in paper["identifiers"]]


def test_the_package_says_that_it_is_typed():
    """`.ci/run` looks for it in an installed package."""
    assert (ROOT / "prolora_jax" / "py.typed").read_bytes() == b""
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["prolora_jax"]


def test_hooks_run_what_ci_runs_and_fetch_nothing():
    script = (ROOT / ".ci" / "run").read_text()
    of_ci = {line for line in re.findall(r'^step ".*?" "(.*?)"$', script, flags=re.MULTILINE)}
    repos = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = repos[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system", "pygrep"}
    ours = {hook["entry"] for hook in hooks if hook["language"] == "system"}
    assert ours == {command for command in of_ci if re.search("ruff|pyright", command)}


def test_what_needs_the_old_libraries_runs_apart():
    """Not collected with the others; `.ci/run` and CONTRIBUTING.md run it in its environment."""
    ignored = PROJECT["tool"]["pytest"]["ini_options"]["norecursedirs"]
    assert "tests/stock" in ignored
    assert (ROOT / "tests" / "stock" / "conftest.py").is_file()
    extras = {
        name: {re.split("[<>=]", line)[0]: line for line in lines}
        for name, lines in PROJECT["project"]["optional-dependencies"].items()
    }
    assert extras["stock"]["diffusers"] == "diffusers==0.39.0"
    assert extras["stock"]["torch"] == extras["test"]["torch"]
    command = "python3 -m venv .venv-stock && .venv-stock/bin/pip install "
    command += f"{extras['stock']['torch']} -e '.[stock]' && .venv-stock/bin/pytest tests/stock\n"
    assert command in (ROOT / "CONTRIBUTING.md").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    assert "stock=$(line_of CONTRIBUTING.md 'pytest tests/stock')" in script
