"""A refinement on two tiny pipelines: torch's teacher, falling loss, kills that lose nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from refined_pairs import (
    OWN,
    PROMPTS,
    RECIPE,
    Lesson,
    Pair,
    loaded,
    made_adapter,
    made_pair,
    require_torchs_teacher,
    taught,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_pipelines import TEXT, edit

import prolora_jax as pl
from prolora_jax.catalog.refined import refine_files
from prolora_jax.cli.main import run
from prolora_jax.io.outputs.reports import read_report, report_path
from prolora_jax.io.outputs.work_folder import WorkFolder
from prolora_jax.migration.pair import BasePair
from prolora_jax.refine.job import kept_state, shared
from prolora_jax.refine.job.bases import DrawingBases
from prolora_jax.refine.job.files import FileRefinement, RefineRequest
from prolora_jax.verification.file import verify_file

pytestmark = pytest.mark.usefixtures("little_optimized")


@pytest.fixture(autouse=True)
def memory_given_back_within() -> None:
    """Programs stay until the file is done: every test here uses the same ones."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return made_pair(tmp_path_factory.mktemp("pair"), "sd15", "sd15")


@pytest.fixture(scope="module")
def whole(pair: Pair, tmp_path_factory) -> Lesson:
    """A refinement in one go."""
    return taught(pair, tmp_path_factory.mktemp("whole"))


def test_teacher_is_the_sum_of_three_torch_predictions(pair: Pair, whole: Lesson):
    require_torchs_teacher(pair, whole.rows)
    record = whole.done.record
    assert record.missed is not None
    assert record.missed_by_teacher is not None
    assert record.missed[1] < record.missed[0]
    assert record.missed_by_teacher < 1e-9 < record.missed[1]  # the effect itself, but for rounding


ASKED = "--rows 24 --pictures 6 --draw-steps 2 --steps 12 --batch 8 -q"


TEXTS = ("text_model.encoder.layers.0.self_attn.q_proj",)


@pytest.fixture(scope="module")
def catalog(pair: Pair, tmp_path_factory) -> Path:
    """Two adapters of the source, the second with a text encoder's modules; a file that is none."""
    folder = tmp_path_factory.mktemp("catalog")
    spec = pl.load_base_model(pair.folders[0]).spec
    other = made_adapter(loaded(pair.folders[0])[1], 2, TEXTS)
    for name, adapter in {"ink": pair.given, "stone": other}.items():
        pl.save_adapter(adapter, folder / f"{name}.safetensors", base=spec)
    (folder / "junk.safetensors").write_bytes(b"junk")
    (folder.parent / "prompts.txt").write_text("\n".join(PROMPTS) + "\n\n")
    return folder


def refine(pair: Pair, given: Path, out: Path, *more: str, kind: str = "concept") -> int:
    """The command."""
    prompts = given.parent / "prompts.txt"
    if given.is_file():
        prompts = given.parent.parent / "prompts.txt"
    bases = "--source", str(pair.folders[0]), "--target", str(pair.folders[1])
    pools = "--prompts", str(prompts), "--trigger", OWN[0]
    words = [
        "refine",
        str(given),
        "--out",
        str(out),
        *bases,
        *pools,
        *ASKED.split(),
        "--kind",
        kind,
        *more,
    ]
    return run(words)


def test_a_refined_file_loads_and_is_verified_as_far_as_can_be(pair: Pair, catalog, tmp_path):
    out = tmp_path / "out.safetensors"
    assert refine(pair, catalog / "ink.safetensors", out) == 0
    assert not Path(f"{out}.refine-work").exists()
    report = read_report(out)
    record = report["refined"]
    assert record["way"] == "refine"
    before, after = record["missed"]
    assert after < before
    assert len(record["loss_curve"]) == 12
    assert [*record["words"]] == [*PROMPTS, *OWN]
    pair.target.load_lora_weights(tmp_path, weight_name=out.name)
    pair.target.unload_lora_weights()
    checked = verify_file(out)
    assert (checked.verdict, checked.ok) == ("learned", False), checked.problems
    assert set(checked.counts) == {"not-recomputed"}
    assert "learned from samples" in checked.not_checked[0]
    tensors, header = load_file(out), safe_open(out, "np").metadata()
    key = next(key for key in tensors if key.endswith("lora_B.weight"))
    save_file({**tensors, key: 2 * tensors[key]}, out, header)
    assert "has an update of norm" in " ".join(verify_file(out).problems)


def require_texts_copied(given: Path, out: Path) -> None:
    """Modules of text encoders are not taught: they stay what they were, to the bit."""
    before, after = ({m.path: m for m in pl.load_adapter(file).modules} for file in (given, out))
    texts = [path for path in before if path.endswith(TEXTS)]
    assert len(texts) == 1
    for path in texts:
        assert_array_equal(after[path].down, before[path].down)
        assert_array_equal(after[path].up * after[path].scale, before[path].up * before[path].scale)
    flags = {module["path"]: module["flags"] for module in read_report(out)["modules"]}
    assert {path for path in flags if "refined" not in flags[path]} == {*texts}
    assert set(verify_file(out).counts) == {"not-recomputed", "verified"}


def test_a_folder_gives_the_same_files_and_is_taken_up_again(pair: Pair, catalog, tmp_path, capsys):
    alone, out = tmp_path / "alone.safetensors", tmp_path / "out"
    assert refine(pair, catalog / "stone.safetensors", alone) == 0
    require_texts_copied(catalog / "stone.safetensors", alone)
    capsys.readouterr()
    assert refine(pair, catalog, out, "--json") == 1
    found = json.loads(capsys.readouterr().out)["files"]
    assert {Path(one["input"]).name: one["code"] for one in found} == {
        "ink.safetensors": None,
        "stone.safetensors": None,
        "junk.safetensors": "truncated",
    }
    mine, theirs = load_file(out / "stone.safetensors"), load_file(alone)
    assert mine.keys() == theirs.keys()
    for key, array in mine.items():
        assert_array_equal(array, theirs[key])
    (out / "ink.safetensors").unlink()
    report_path(out / "ink.safetensors").unlink()
    assert refine(pair, catalog, out, "--json") == 1
    again = json.loads(capsys.readouterr().out)
    assert again["finished_before"] == [str(out / "stone.safetensors")]
    assert sorted(Path(one["input"]).stem for one in again["files"]) == ["ink", "junk"]
    report_path(out / "ink.safetensors").unlink()  # it would be made again; what else is:
    (out / "stone.safetensors").write_bytes(given := (out / "ink.safetensors").read_bytes())
    assert run(["verify", str(out), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "failed"
    assert refine(pair, catalog, out, "--json") == 1
    assert json.loads(capsys.readouterr().out)["finished_before"] == []
    assert (out / "ink.safetensors").read_bytes() == given
    assert run(["verify", str(out), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], sorted(found["learned"]), found["problems"]) == (
        "learned",
        ["ink.safetensors", "stone.safetensors"],
        {},
    )
    assert run(["status", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["options"] == {"method": "copy", "refine": True}
    assert summary["by_state"] == {"migrated": 2, "refused": 1}
    assert summary["verified"] == {
        "checked": 2,
        "ok": 0,
        "failed": 0,
        "recomputed": 0,
        "learned": 2,
    }
    assert summary["relation"].startswith("Both draw the same kind of pictures")


def test_other_parts_are_another_refinement(pair: Pair, tmp_path):
    source, target = pair.folders
    parts = tmp_path / "parts"
    shutil.copytree(source, parts)
    base = BasePair(pl.load_base_model(source), pl.load_base_model(target))

    def stamp(source: Path = source, **parts: Any) -> str:
        bases = DrawingBases(source, target, **parts)
        return FileRefinement(bases, base, RefineRequest(), tmp_path / "work").stamp

    usual, by_parts = stamp(), stamp(source_parts=parts)
    assert stamp(source=parts) == stamp() == usual  # by what is there, not by where it lies
    found = [usual]
    edit(parts / "scheduler/scheduler_config.json", beta_end=0.02)
    found.append(stamp(source=parts))
    found.append(stamp(target_parts=parts))
    edit(parts / "text_encoder/config.json", hidden_act="gelu")
    found.append(stamp(source=parts))
    assert len({*found}) == len(found)
    found = [by_parts, stamp(source_parts=parts)]
    text = parts / "text_encoder" / TEXT
    tensors = load_file(text)
    key = next(key for key in tensors if key.endswith("token_embedding.weight"))
    save_file({**tensors, key: 2 * tensors[key]}, text)
    found.append(stamp(source_parts=parts))
    assert len({*found}) == len(found)


def test_a_bare_unet_is_copied_by_auto(pair: Pair, catalog, tmp_path, capsys):
    source, target = (str(folder / "unet") for folder in pair.folders)
    words = ["migrate", str(catalog / "ink.safetensors"), "--source", source, "--target", target]
    out = tmp_path / "out.safetensors"
    assert run([*words, "--method", "auto", "--out", str(out), "-q"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "copied, as nothing was taught: " in said
    assert "found no vae/ folder; expected a diffusers pipeline's folder" in said
    assert verify_file(out).verdict == "verified"


def test_auto_gives_the_file_of_refine_and_says_why(pair: Pair, catalog, tmp_path):
    files = {decides: tmp_path / f"{decides}.safetensors" for decides in (False, True)}
    for decides, out in files.items():
        request = RefineRequest(RECIPE, words=(OWN[0],), decides=decides)
        refine_files([catalog / "ink.safetensors"], out, DrawingBases(*pair.folders), request)
    theirs, mine = (load_file(out) for out in files.values())
    assert mine.keys() == theirs.keys()
    for key, array in mine.items():
        assert_array_equal(array, theirs[key])
    assert read_report(files[False]).get("decided") is None
    told = read_report(files[True])
    said = f"taught: R = {told['refined']['disagreement']:.3f} is below the limit of 0.3"
    assert (told["method"], told["decided"][: len(said)]) == ("auto", said)
    assert verify_file(files[True]).verdict == "learned"
    for forged in (told["decided"].replace("R = ", "R = 1"), "copied, as nothing was taught: "):
        report_path(files[True]).write_text(json.dumps(told | {"decided": forged}))
        problems = " ".join(verify_file(files[True]).problems)
        assert "the report says that `auto` chose" in problems


def test_what_cannot_be_taught_is_refused_before_any_work(pair: Pair, catalog, tmp_path, capsys):
    ink, out, parts = catalog / "ink.safetensors", tmp_path / "out.safetensors", tmp_path / "parts"
    shutil.copytree(pair.folders[1], parts)
    edit(parts / "vae" / "config.json", scaling_factor=0.13)
    assert refine(pair, ink, out, "--target-parts", str(parts)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "its VAE has scaling_factor 0.18215; expected 0.13, which" in said
    assert refine(pair, ink, out, "--source-parts", str(pair.folders[0] / "unet")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "found no vae/ folder; expected a diffusers pipeline's folder" in said
    Path(f"{out}.refine-work").touch()
    assert refine(pair, ink, out) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "out.safetensors.refine-work/pair/begun.safetensors: cannot be written" in said
    Path(f"{out}.refine-work").unlink()
    nothing = tuple(replace(module, up=0 * module.up) for module in pair.given.modules)
    (tmp_path / "zero").mkdir()
    (tmp_path / "prompts.txt").write_text("a stone\n")
    zero = tmp_path / "zero" / "zero.safetensors"
    spec = pl.load_base_model(pair.folders[0]).spec
    pl.save_adapter(replace(pair.given, modules=nothing), zero, base=spec)
    assert refine(pair, zero, out) == 1
    assert "no module can move from" in (said := " ".join(capsys.readouterr().err.split()))
    assert f"(zero-delta: {len(nothing)})" in said
    assert not Path(f"{out}.refine-work").exists()


def test_an_input_is_never_replaced(pair: Pair, catalog, tmp_path):
    style = tmp_path / "style.safetensors"
    given = (catalog / "ink.safetensors").read_bytes()
    style.write_bytes(given)
    (tmp_path.parent / "prompts.txt").write_text("a stone\n")
    Path(f"{style}.refine-work").mkdir()  # as after a kill
    for more in ((), ("--overwrite",)):
        assert refine(pair, style, style, *more) == 2
    assert style.read_bytes() == given


def test_a_style_stays_a_copy_where_pictures_differ(pair: Pair, catalog, tmp_path, monkeypatch):
    names = ("source_on_target", "target_on_source", "target_own", "source_own")
    losses = dict(zip(names, (4.0, 4.0, 1.0, 1.0), strict=True))
    monkeypatch.setattr(shared, "losses_of", lambda *given: losses)
    out = tmp_path / "out.safetensors"
    assert refine(pair, catalog / "ink.safetensors", out, kind="style") == 0
    record = read_report(out)["refined"]
    assert (record["way"], record["steps"]) == ("copy", 0)
    assert "different domains" in record["sentence"]
    checked = verify_file(out)
    assert checked.verdict == "verified", checked.problems
    assert set(checked.counts) == {"verified"}
    for module in pl.load_adapter(out).modules:
        assert module.path in {m.path for m in pair.copied.modules}


def test_similarity_by_samples_says_what_refine_finds(pair: Pair, catalog, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert refine(pair, catalog / "ink.safetensors", out) == 0
    capsys.readouterr()
    bases = "--source", str(pair.folders[0]), "--target", str(pair.folders[1])
    pools = "--prompts", str(catalog.parent / "prompts.txt"), "--pictures", "6"
    words = ["similarity", *bases, *pools, "--draw-steps", "2", "-q", "--by-samples"]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    record = read_report(out)["refined"]
    assert found["losses"] == pytest.approx(record["losses"], rel=1e-6)
    assert found["disagreement"] == pytest.approx(record["disagreement"], rel=1e-4)
    assert run(words) == 0
    assert record["sentence"] in capsys.readouterr().out


def test_killed_and_taken_up_again_is_the_same(pair: Pair, whole: Lesson, tmp_path, monkeypatch):
    want = whole.done.adapter
    save = WorkFolder.save
    monkeypatch.setattr(kept_state, "KEPT_EVERY", 1)
    for last in ("target", "source", "effect", "losses", 5):
        steps = 0

        def killed(self: WorkFolder, name: str, arrays: Any, last: Any = last) -> None:
            nonlocal steps
            save(self, name, arrays)
            steps += name == "student"
            if last in (name, steps):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(WorkFolder, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                pair.run(tmp_path / "work")
    found, _ = pair.run(tmp_path / "work")
    for mine, theirs in zip(found.modules, want.modules, strict=True):
        assert_allclose(mine.up, theirs.up, rtol=0, atol=0)
        assert_allclose(mine.down, theirs.down, rtol=0, atol=0)


def test_what_another_job_has_kept_is_left_alone(tmp_path):
    WorkFolder(tmp_path, "a").save("target", {"x": np.arange(3)})
    assert WorkFolder(tmp_path, "b").load("target") is None
    assert WorkFolder(tmp_path, "a").load("source") is None
    found = WorkFolder(tmp_path, "a").load("target")
    assert found is not None
    assert_allclose(found["x"], np.arange(3))
    (tmp_path / "target.safetensors").write_bytes(b"torn")
    assert WorkFolder(tmp_path, "a").load("target") is None
    WorkFolder(tmp_path, "a").remove()
    assert not tmp_path.exists()
