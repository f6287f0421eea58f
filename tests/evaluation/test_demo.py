"""`prolora demo`: what it shows is measured, what ships is small and complete."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prolora_jax.cli.main import run
from prolora_jax.evaluation.demo import FOLDER, RECIPE, style_file
from prolora_jax.evaluation.laboratory.recipe import Recipe
from prolora_jax.io.documents import read_json, read_yaml

METHODS = {"copy", "subspace", "null-space", "prolora", "prolora-full", "rotation"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("demo") / "out"
    # In a process of its own: the core alone has to do.
    blocked = "import sys; sys.modules.update(dict.fromkeys(('sklearn', 'optax', 'torch'), None)); "
    code = f"{blocked}from prolora_jax.cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "demo", "--out", str(place), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "A style moved by every arm" in done.stdout
    return place


def test_the_style_arrives_and_every_output_is_verified(folder: Path):
    summary = json.loads((folder / "demo.json").read_text())
    arms = {row["method"]: row for row in summary["arms"]}
    assert arms.keys() == METHODS
    assert all(row["verified"] for row in arms.values())
    assert summary["loss_trained"] < arms["copy"]["loss"] < summary["loss_without"]
    for row in arms.values():
        low, high = row["share"][1:]
        assert 0 < low <= row["share"][0] <= high < 1
    # Cross blocks are what prolora drops and prolora-full keeps.
    assert arms["prolora"]["share"][2] < arms["prolora-full"]["share"][1]
    assert (folder / "pictures.png").stat().st_size > 5_000
    assert (folder / "similarity.png").stat().st_size > 5_000


def test_outputs_are_files_like_any_other(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["verify", str(folder / "style.prolora-full.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_what_ships_is_small_and_says_how_it_was_made():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 4_000_000
    recipe = read_yaml(FOLDER / RECIPE, Recipe)
    shipped = Path(__file__).parents[2] / "configs" / "laboratory" / "demo.yaml"
    assert (FOLDER / RECIPE).read_text() == shipped.read_text()
    for base in recipe.bases:
        note = read_json(FOLDER / "bases" / base.name / "trained.json")
        assert note is not None
        assert note["hash"] == recipe.base_hash(base.name)
        assert 0 < note["held_out_loss"] < 0.5
        adapter = read_json(style_file(base.name).with_suffix(".json"))
        assert adapter is not None
        assert adapter["hash"] == recipe.adapter_hash(base.name, "invert", 0)
