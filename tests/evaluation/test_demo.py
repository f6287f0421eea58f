"""`prolora demo`: what it shows is measured, what ships is small and complete."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from prolora_jax.cli.console import out
from prolora_jax.cli.demo_tables import show_demo
from prolora_jax.cli.main import run
from prolora_jax.evaluation.demo import FOLDER, RECIPE, style_file
from prolora_jax.evaluation.demo_refine import against_copy
from prolora_jax.evaluation.laboratory.recipe import Recipe
from prolora_jax.evaluation.metrics.shares import Share
from prolora_jax.io.documents import read_json, read_yaml
from prolora_jax.refine.guard import LIMIT

METHODS = {"copy", "subspace", "null-space", "prolora", "prolora-full", "rotation"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("demo") / "out"
    # In a process of its own: the core alone has to do (flax brings optax).
    others = ("sklearn", "torch", "diffusers", "transformers")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({others}, None)); "
    told = "from prolora_jax.cli import console; console.PLAIN_LINE_SECONDS = -1.0; "
    code = f"{blocked}{told}from prolora_jax.cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "demo", "--out", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(re.search(r": \d+ of \d+", line) for line in lines)  # progress, and nothing else
    assert any(re.search(r"^student learns: 40 of 50, .*/s, 0:00:\d\d left$", x) for x in lines)
    assert [x.split(", ")[0] for x in lines if x.startswith("both nets draw")] == [
        f"both nets draw: {n} of 4" for n in range(5)
    ]
    assert "A style moved by every arm" in done.stdout
    return place


def test_the_style_arrives_and_every_output_is_verified(folder: Path):
    summary = json.loads((folder / "demo.json").read_text())
    arms = {row["method"]: row for row in summary["arms"]}
    assert arms.keys() == METHODS | {"refine"}
    assert all(arms[method]["verified"] for method in METHODS)
    assert summary["loss_trained"] < arms["copy"]["loss"] < summary["loss_without"]
    for row in arms.values():
        low, high = row["share"][1:]
        assert 0 < low <= row["share"][0] <= high < 1
    # Cross blocks are what prolora drops and prolora-full keeps.
    assert arms["prolora"]["share"][2] < arms["prolora-full"]["share"][1]
    assert (folder / "pictures.png").stat().st_size > 5_000
    assert (folder / "similarity.png").stat().st_size > 5_000


def test_refine_brings_what_the_copy_lost(folder: Path):
    """Measured: another fit, or a teacher that is none, does not reach the copy's loss."""
    summary = json.loads((folder / "demo.json").read_text())
    arms, refine = {row["method"]: row for row in summary["arms"]}, summary["refine"]
    assert arms["refine"]["share"][1] > arms["copy"]["share"][2]
    assert summary["loss_trained"] < arms["refine"]["loss"] < arms["copy"]["loss"]
    assert (arms["refine"]["verified"], arms["refine"]["verdict"]) == (False, "learned")
    assert -0.05 < refine["disagreement"] < LIMIT  # else the guard would have kept the copy
    before, after = refine["effect_missed"]
    assert after < 0.5 * before
    assert refine["against_copy"].startswith("refine brings")
    record = json.loads((folder / "style.refine.safetensors.report.json").read_text())["refined"]
    assert len(record["loss_curve"]) == record["steps"] == refine["steps"]
    assert record["is_style"]
    # What was judged is what was written: not the copy again.
    kept = [load_file(folder / f"style.{arm}.safetensors") for arm in ("refine", "copy")]
    assert kept[0].keys() == kept[1].keys()
    assert not any(np.array_equal(kept[0][key], kept[1][key]) for key in kept[0])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.93, 0.97, r"^refine brings 95\.0% of the style where copy brings 90\.0%\.$"),
        (0.905, 0.97, "no clear difference: the copy is enough"),
        (0.80, 0.85, "refine brings only 82.5% .*: keep the copy"),
    ],
)
def test_a_student_that_is_no_better_is_not_praised(low: float, high: float, said: str):
    refined = Share((low + high) / 2, low, high)
    assert re.search(said, against_copy(refined, Share(0.9, 0.89, 0.91)))


def test_the_table_says_what_a_student_is_worth(folder: Path, capsys):
    summary = json.loads((folder / "demo.json").read_text())
    sentence = "refine brings 1% of the style where copy brings 2%: keep the copy."
    summary["refine"]["against_copy"] = sentence
    show_demo(out(), summary)
    shown = capsys.readouterr().out
    assert sentence in shown
    assert "data-free, not training-free" in shown
    assert re.search(r"refine +│ 0\.\d+ │ .* learned │", shown)


def test_outputs_are_files_like_any_other(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["verify", str(folder / "style.prolora-full.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert run(["verify", str(folder / "style.refine.safetensors"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "learned"


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
