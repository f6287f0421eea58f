"""The arm `refine` that `prolora evaluate` makes itself: the job of `prolora refine`, resumable."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import encoder_files
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from refined_pairs import PROMPTS, Pair, made_pair
from safetensors.numpy import load_file

import prolora_jax as pl
from prolora_jax.cli.main import run
from prolora_jax.evaluation.judging import taught
from prolora_jax.io.outputs.reports import read_report
from prolora_jax.io.outputs.work_folder import WorkFolder
from prolora_jax.refine import guard
from prolora_jax.refine.job import shared
from prolora_jax.refine.job.recipe import RefineRecipe

pytestmark = pytest.mark.usefixtures("little_optimized")
COUNTS: dict[str, Any] = {"rows": 24, "pictures": 6, "draw_steps": 2, "steps": 12, "batch": 8}
MORE: dict[str, Any] = {"prompts": PROMPTS, "kind": "concept"}


@pytest.fixture(autouse=True)
def memory_given_back_within() -> None:
    """Programs stay until the file is done: every test here uses the same ones."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Pair, Path]:
    """Two tiny pipelines, and a folder with an adapter, prompts, encoders and references."""
    pair = made_pair(tmp_path_factory.mktemp("pair"), "sd15", "sd15")
    folder = tmp_path_factory.mktemp("files")
    spec = pl.load_base_model(pair.folders[0]).spec
    pl.save_adapter(pair.given, folder / "ink.safetensors", base=spec)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    encoder_files.write_weights(folder / "weights")
    encoder_files.write_pictures(folder / "references", 3)
    return pair, folder


@pytest.fixture(autouse=True)
def small_recipe(monkeypatch, tmp_path) -> None:
    """What is asked for by default takes hours."""
    monkeypatch.setattr(taught, "RefineRecipe", partial(RefineRecipe, **COUNTS, **MORE))
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "store"))


def evaluate(files: tuple[Pair, Path], out: Path, *words: str) -> int:
    (source, target), folder = files[0].folders, files[1]
    given = ["--source", str(source), "--target", str(target), "--prompts", "prompts.txt"]
    given += ["--lora", "ink.safetensors", "--weights-dir", "weights", "--metrics", "clip-i"]
    given += ["--references", "references"]
    given = [str(folder / word) if (folder / word).exists() else word for word in given]
    usual = ["--arms", "copy,refine", "--seeds", "0-1", "--steps", "2", "--out", str(out), "-q"]
    return run(["evaluate", *given, *usual, *words])


def drawn(out: Path, arm: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(p)) for p in sorted(out.rglob(f"{arm}/*.png"))])


def test_refined_here_as_by_its_own_command(files, tmp_path, capsys, monkeypatch):
    pair, folder = files
    out, save = tmp_path / "out", WorkFolder.save
    asked: list[str] = []
    monkeypatch.setattr(shared, "of_target", _noting(asked, "target", shared.of_target))
    monkeypatch.setattr(shared, "of_source", _noting(asked, "source", shared.of_source))

    def killed(self: WorkFolder, name: str, arrays: Any) -> None:
        save(self, name, arrays)
        if name == "effect":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WorkFolder, "save", killed)
        with pytest.raises(SystemExit, match="130"):
            evaluate(files, out)
    assert not (out / "evaluation.json").exists()
    assert evaluate(files, out) == 0
    assert asked == ["target", "source"]  # what was kept is not asked again
    printed = capsys.readouterr().out
    made = out / "refined" / "ink.safetensors"
    assert sorted(path.name for path in made.parent.iterdir()) == [
        "ink.safetensors",
        "ink.safetensors.report.json",
    ]
    # As the other command makes it.
    words = [f"--{name.replace('_', '-')}={count}" for name, count in COUNTS.items()]
    words += ["--prompts", str(folder / "prompts.txt"), "--kind", "concept", "-q"]
    bases = "--source", str(pair.folders[0]), "--target", str(pair.folders[1])
    alone = tmp_path / "alone.safetensors"
    assert (
        run(["refine", str(folder / "ink.safetensors"), "--out", str(alone), *bases, *words]) == 0
    )
    mine, theirs = load_file(made), load_file(alone)
    assert mine.keys() == theirs.keys()
    for key, array in mine.items():
        assert_array_equal(array, theirs[key])
    record = read_report(alone)["refined"]
    document = json.loads((out / "evaluation.json").read_text())
    (subject,) = document["subjects"]
    assert subject["own"] == {"refine": str(made)}
    assert subject["refined"]["disagreement"] == record["disagreement"]
    assert subject["refined"]["way"] == "refine"
    said = f"R = {record['disagreement']:.3f}: refined"
    assert said in " ".join(printed.split())
    assert f"{said}. {record['sentence']}" in (out / "index.html").read_text()
    assert np.abs(drawn(out, "refine") - drawn(out, "copy").astype(float)).max() > 3
    # Nothing is done twice; what is at hand is drawn the same, and its report is read.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert evaluate(files, out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before
    given = tmp_path / "given"
    assert evaluate(files, given, "--refined", str(alone)) == 0
    assert not (given / "refined").exists()
    assert_array_equal(drawn(given, "refine"), drawn(out, "refine"))
    told = json.loads((given / "evaluation.json").read_text())["subjects"][0]["refined"]
    assert told == subject["refined"]


def _noting(asked: list[str], name: str, function: Any) -> Any:
    return lambda *given: asked.append(name) or function(*given)


def test_the_guard_keeps_a_copy_and_the_table_says_so(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(guard, "disagreement", lambda **losses: 3.0)
    monkeypatch.setattr(
        taught, "RefineRecipe", partial(RefineRecipe, **COUNTS, prompts=PROMPTS, kind="style")
    )
    assert evaluate(files, tmp_path / "out") == 0
    assert "R = 3.000: the guard kept the copy" in " ".join(capsys.readouterr().out.split())
    assert_array_equal(drawn(tmp_path / "out", "refine"), drawn(tmp_path / "out", "copy"))


def test_what_cannot_be_refined_is_refused_before_anything_is_drawn(
    files, tmp_path, capsys, monkeypatch
):
    def missing() -> None:
        raise pl.UsageError("refine: found no optax", code=pl.errors.Refusal.MISSING_LIBRARY)

    monkeypatch.setattr(taught, "require_optax", missing)
    assert evaluate(files, tmp_path / "out") == 2
    assert "found no optax" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
