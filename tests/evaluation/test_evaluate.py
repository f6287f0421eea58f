"""`prolora evaluate`: pictures drawn once, judged as torch's encoders judge them, on a page."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import builders
import encoder_files
import jax
import numpy as np
import pytest
import tiny_pipelines
import torch
import unets
from numpy.testing import assert_allclose
from PIL import Image
from safetensors.numpy import save_file
from tiny_pipelines import PROMPTS, SHORT
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from vision_nets import CONFIGS, arrays, torch_encoder

from prolora_jax.cli.main import run
from prolora_jax.errors import UsageError
from prolora_jax.evaluation.judging.arms import HowToDraw, drawn_set
from prolora_jax.evaluation.judging.concept_prompts import TEMPLATES, concept_prompts
from prolora_jax.evaluation.judging.page import bars
from prolora_jax.evaluation.judging.request import DrawnSet, Picture, subjects_of
from prolora_jax.plans.options import MigrationOptions

pytestmark = pytest.mark.usefixtures("little_optimized")
ARMS = ("none", "copy", "trained")
SEEDS = (0, 1)


class Files(NamedTuple):
    source: Path
    target: Path
    style: Path
    trained: Path
    prompts: Path
    weights: Path
    clip: Any


def clip_model() -> Any:
    """A CLIP of both towers whose text tower knows the tiny pipelines' tokens."""
    torch.manual_seed(3)
    text = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 1, "vocab_size": 514, "max_position_embeddings": 16}
    text |= {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = CONFIGS["quick_gelu"] | {"patch_size": 28, "image_size": 56}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)
    return CLIPModel(config).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("evaluate")
    pipe = tiny_pipelines.make_pipeline(folder / "source", "vega", short=True)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in (p for p in pipe.unet.parameters() if p.ndim > 1):
            weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
    pipe.save_pretrained(folder / "target")
    written = []
    for rank in (4, 2):
        net = unets.torch_net(SHORT["vega"])
        builders.add_lora(net, targets=builders.ATTENTION, rank=rank, alpha=8 * rank, seed=rank)
        written.append(builders.save_by_diffusers(net, folder / f"rank {rank}"))
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n\n")
    weights = folder / "weights"
    model = clip_model()
    model.save_pretrained(weights / "clip")
    net = torch_encoder(CONFIGS["dinov2"] | {"patch_size": 28, "image_size": 56}, 4)
    (weights / "dinov2-base").mkdir()
    (weights / "dinov2-base" / "config.json").write_text(net.config.to_json_string())
    tensors = {k: np.ascontiguousarray(v) for k, v in arrays(net).items()}
    save_file(tensors, weights / "dinov2-base" / "model.safetensors")
    style, trained = written
    target = folder / "target"
    return Files(folder / "source", target, style, trained, prompts, weights, model)


@pytest.fixture(autouse=True)
def _here(monkeypatch, files):
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=unets.QUICK))
    monkeypatch.setenv("PROLORA_STORE", str(files.source.parent / "store"))
    monkeypatch.setenv("PROLORA_TRACEBACK", "1")


def evaluate(files: Files, out: Path, *words: str) -> int:
    usual: dict[str, Any] = {
        "--source": files.source,
        "--target": files.target,
        "--lora": files.style,
        "--trained": files.trained,
        "--prompts": files.prompts,
        "--out": out,
        "--weights-dir": files.weights,
        "--arms": ",".join(ARMS),
        "--seeds": "0-1",
        "--steps": 2,
    }
    if "--arms" in words and "trained" not in words[words.index("--arms") + 1]:
        del usual["--trained"]  # where it would do nothing it is refused
    given = [str(w) for name, value in usual.items() if name not in words for w in (name, value)]
    return run(["evaluate", *given, "-q", *words])


def test_drawn_judged_shown_and_drawn_only_once(files, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--metrics", "clip-t,dino"]
    assert evaluate(files, out, *words, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "evaluation.json").read_text())
    (subject,) = printed["subjects"]
    pictures = sorted((out / "pictures").rglob("*.png"))
    assert len(pictures) == len(ARMS) * len(PROMPTS) * len(SEEDS)
    assert sum(subject["moved"]["copy"].values()) > 0
    # As torch's own CLIP and its own preparation judge the files.
    order = [(p, s) for p in range(len(PROMPTS)) for s in SEEDS]
    tokenizer = CLIPTokenizer.from_pretrained(files.target / "tokenizer")
    told = tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt")
    for arm in ARMS:
        folder = out / "pictures" / ("none" if arm == "none" else f"{subject['name']}/{arm}")
        opened: list[Image.Image] = [Image.open(folder / f"p{p:03d}-s{s}.png") for p, s in order]
        pixels = CLIPImageProcessorPil()(images=opened, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            seen = files.clip(
                input_ids=told.input_ids, pixel_values=pixels, interpolate_pos_encoding=True
            )
        text = seen.text_embeds[[p for p, _ in order]]
        want = torch.nn.functional.cosine_similarity(seen.image_embeds, text).numpy()
        score = subject["scores"]["clip-t"][arm]
        assert_allclose(score["pictures"], want, rtol=0, atol=2e-5)
        assert score["value"] == pytest.approx(want.mean(), abs=2e-5)
        low, high = score["interval"]
        assert low <= score["value"] <= high
        assert (score["against_copy"] is None) == (arm == "copy")
    # The references are the pictures of `trained`, which is not compared with itself.
    assert subject["references"] == "trained"
    dino = subject["scores"]["dino"]
    assert {arm: len(dino[arm]["pictures"]) for arm in dino} == {"none": 4, "copy": 4}
    assert 0.99 < dino["copy"]["value"] <= 1 + 1e-9
    # What is there stays; what is damaged, missing or of something else is drawn again.
    before = {path: path.stat().st_mtime_ns for path in pictures}
    contents = {path: path.read_bytes() for path in pictures}
    pictures[0].write_bytes(contents[pictures[0]][:200])
    pictures[3].unlink()
    assert evaluate(files, out, *words) == 0
    again = {path: path.stat().st_mtime_ns for path in sorted((out / "pictures").rglob("*.png"))}
    assert {p for p in again if again[p] != before[p]} == {pictures[0], pictures[3]}
    assert {path: path.read_bytes() for path in again} == contents
    assert json.loads((out / "evaluation.json").read_text()) == printed
    _is_written(out, subject)


def _is_written(out: Path, subject: dict[str, Any]) -> None:
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["arm"], row["metric"]) for row in rows} == {
        (arm, name) for arm in ARMS for name in ("clip-t", "dino")
    } - {("trained", "dino")}
    with (out / "pictures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ARMS) * len(PROMPTS) * len(SEEDS)
    for row in rows:
        assert (out / row["file"]).is_file()
    found = [float(row["clip-t"]) for row in rows if row["arm"] == "copy"]
    assert_allclose(found, subject["scores"]["clip-t"]["copy"]["pictures"])
    page = (out / "index.html").read_text()
    for place in {row["file"] for row in rows}:
        assert f'src="{place}"' in page
    assert "http" not in page


def test_pictures_of_another_program(files, tmp_path, capsys):
    for seed, name in enumerate(("ours", "theirs")):
        encoder_files.write_pictures(tmp_path / name, 4 + seed)
    (tmp_path / "theirs" / "004.png").unlink()
    given = [w for name in ("ours", "theirs") for w in ("--pictures", str(tmp_path / name))]
    judged = ["--weights-dir", str(files.weights), "--out", str(tmp_path / "out"), "-q"]
    told = ["--prompts", str(files.prompts), "--tokenizer", str(files.target / "tokenizer")]
    references = ["--metrics", "clip-t,clip-i", "--references", str(tmp_path / "ours")]
    assert run(["evaluate", *given, *judged, *told, *references, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["arms"], found["seeds"]) == (["ours", "theirs"], [0, 1])
    scores = found["subjects"][0]["scores"]
    assert scores["clip-t"]["ours"] == scores["clip-t"]["theirs"]  # the same pictures
    page = (tmp_path / "out" / "index.html").read_text()
    assert 'src="../theirs/003.png"' in page
    assert run(["evaluate", *given, *judged, *told[:2], *references]) == 2
    assert "clip: found no tokenizer" in " ".join(capsys.readouterr().err.split())
    assert run(["evaluate", *given, *judged, *told[2:], *references]) == 2
    assert "--metrics clip-t: expected --prompts FILE" in capsys.readouterr().err
    twice = tmp_path / "twice.txt"
    twice.write_text("ink\npaper\nink\npaper\n")
    lines = ["--prompts", str(twice), *told[2:], *references, "--json"]
    assert run(["evaluate", *given, *judged, *lines, "--protocol", "paper-concept"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["prompts"], found["seeds"]) == (["ink", "paper", "ink", "paper"], [0])
    assert found["published"][1]["values"]["clip-i"] == 0.719
    for words in (["--steps", "3"], ["--scale", "1"], ["--migrate.rank", "4"]):
        assert run(["evaluate", *given, *judged, *lines, *words]) == 2
        name = words[0].partition(".")[0]
        assert f"{name}: found it beside --pictures" in capsys.readouterr().out
    (tmp_path / "theirs" / "003.png").unlink()
    assert run(["evaluate", *given, *judged, *told, *references]) == 2
    assert run(["evaluate", *given, *judged, *told, "--lora", str(files.style)]) == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert "--pictures theirs: found 3 pictures; expected 4" in errors
    assert "--lora: found it beside --pictures" in errors


def test_the_prompts_of_the_second_protocol(files, tmp_path, capsys):
    for kind, own in (("object", "floating in an ocean of milk"), ("live", "in a chef outfit")):
        encoder_files.write_pictures(tmp_path / kind, 25)
        words = ["--pictures", str(tmp_path / kind), "--weights-dir", str(files.weights), "-q"]
        words += ["--tokenizer", str(files.target / "tokenizer"), "--metrics", "clip-t", "--json"]
        words += ["--protocol", "paper-concept", "--subject", " sks  dog", "--subject-kind", kind]
        assert run(["evaluate", *words, "--out", str(tmp_path / f"out {kind}")]) == 0
        prompts = json.loads(capsys.readouterr().out)["prompts"]
        assert len({*prompts}) == 25
        assert prompts[0] == "a sks dog in the jungle"
        assert prompts[14] == f"a sks dog {own}"
        assert prompts[-1] == "a cube shaped sks dog"
        assert all(prompt.count("sks dog") == 1 for prompt in prompts)
    shared = len({*TEMPLATES["object"]} & {*TEMPLATES["live"]})
    assert shared == 15
    with pytest.raises(UsageError, match="--subject: found no words; expected those"):
        concept_prompts(" ", "live")


def test_published_numbers_stand_beside_ours(files, tmp_path, capsys):
    words = ["--protocol", "paper-concept", "--references", str(tmp_path / "photos")]
    encoder_files.write_pictures(tmp_path / "photos", 3)
    # Of two adapters: what has none is drawn once, for the first.
    words += [w for file in (files.style, files.trained) for w in ("--lora", str(file))]
    assert evaluate(files, tmp_path / "out", *words, "--arms", "none,copy") == 0
    assert "clip-i" in capsys.readouterr().out
    drawn = sorted(p.parent.relative_to(tmp_path) for p in (tmp_path / "out").rglob("*.png"))
    assert {len([p for p in drawn if p == folder]) for folder in drawn} == {4}
    assert [p.name for p in dict.fromkeys(drawn)] == ["none", "copy", "copy"]
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["metrics"] == ["clip-t", "clip-i", "dino"]
    assert found["subjects"][0]["references"] == str(tmp_path / "photos")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "paper: DreamBooth, SDXL to SSD-1B, prolora" in page
    assert "0.737" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "beauty"], "--metrics beauty: expected one of hps"),
        (["--metrics", "dino", "--arms", "none"], "expected --references DIR or --trained"),
        (["--metrics", "lpips-diversity", "--seeds", "3"], "expected two seeds or more"),
        (["--arms", "none,magic"], "--arms magic: expected none"),
        (["--size", "20"], "--size 20: expected a multiple of 8"),
        (["--scale", "1", "--scale", "2"], "--scale: found 2 for 1 adapters"),
        (["--prompts", "/nowhere"], "nowhere: "),
        (["--metrics", "csd"], "csd"),
        (["--lora", "nowhere.safetensors"], "nowhere.safetensors: cannot be read"),
        (["--metrics", "dino", "--references", "nowhere"], "nowhere: no such folder"),
        (["--metrics", "hps-v2.0"], "hps-v2.0"),
        (["--vae-tile", "wide"], "--vae-tile"),
        # What would do nothing.
        (["--arms", "copy", "--trained", "x"], "--trained: found it beside --arms copy, where"),
        (["--source-parts", "x"], "--source-parts: found it where nothing is refined here"),
        (["--arms", "none,trained", "--migrate.rank", "4"], "--migrate.rank: found it beside"),
        (["--negative", "ink", "--guidance", "1"], "--negative 'ink': found guidance 1, by which"),
        (["--negative", "ink", "--sampler", "lcm"], "--negative 'ink': found guidance 1, by which"),
        (
            ["--sampler", "lcm", "--spacing", "linspace"],
            "--spacing linspace: found the sampler lcm",
        ),
        (["--metrics", "dino", "--tokenizer", "x"], "--tokenizer: found it beside --metrics dino"),
        (["--metrics", "clip-t", "--references", "x"], "--references: found it beside --metrics"),
        (["--subject", "a dog"], "--subject: found it beside --prompts"),
        (["--subject-kind", "live"], "--subject-kind: found it without --subject"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_drawn(
    files, tmp_path, capsys, monkeypatch, words, message
):
    monkeypatch.delenv("PROLORA_TRACEBACK")
    out = tmp_path / "out"
    assert evaluate(files, out, *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_names_keys_and_bars(tmp_path):
    one, two = subjects_of((Path("a/x y.safetensors"), Path("b/x y.safetensors")), {})
    assert (one.name, two.name) == ("x-y", "x-y-2")
    with pytest.raises(UsageError, match="--lora: found none"):
        subjects_of((), {})
    made = DrawnSet(
        tmp_path / "s", ("none", "copy"), ("a",), (0,), {"steps": 2}, {"copy": {"file": "h"}}
    )
    other = DrawnSet(
        tmp_path / "s", ("none", "copy"), ("a",), (0,), {"steps": 2}, {"copy": {"file": "i"}}
    )
    none, copy = Picture("none", 0, 0), Picture("copy", 0, 0)
    assert made.key(none) == other.key(none)
    assert made.key(copy) != other.key(copy)
    score = {"value": 0.5, "interval": (0.25, 1.0), "against_copy": None, "details": {"n": 2}}
    (bar,) = bars({"copy": score})
    assert (bar.width, bar.low, bar.high, bar.details) == (50.0, 25.0, 100.0, "n 2")


def test_what_a_picture_depends_on_is_in_its_key(files, tmp_path):
    (subject,) = subjects_of((files.style,), {"trained": (files.trained,)})
    how = HowToDraw(str(files.target), steps=2)

    def keys(**changes: Any) -> dict[str, str]:
        given = {"how": how, "source": str(files.source), "options": MigrationOptions()} | changes
        made = drawn_set(subject, ARMS, ("a",), (0,), **given, out=tmp_path)
        return {arm: made.key(Picture(arm, 0, 0)) for arm in ARMS}

    usual = keys()
    assert keys(how=replace(how, at_once=1)) == usual
    (files.target / "note.png").write_bytes(b"no part of a base model")
    assert keys() == usual
    for changes, same in (
        ({"how": replace(how, steps=3)}, set()),
        ({"options": MigrationOptions(alpha_zero="rank")}, {"none"}),
        ({"options": MigrationOptions(rescale="norm")}, {"none", "trained"}),
        ({"source": str(files.target)}, {"none", "trained"}),
    ):
        assert {arm for arm, key in keys(**changes).items() if key == usual[arm]} == same
