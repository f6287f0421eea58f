"""`prolora generate`: the picture, its labels and numbers, and what is said when it cannot draw."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import builders
import jax
import numpy as np
import pytest
import tiny_pipelines
import torch
import unets
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from tiny_pipelines import PROMPTS, SHORT

import prolora_jax as pl
from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.fitting import fit
from prolora_jax.architectures.flax_trees import flax_table, nested
from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.cli.generate import seeds_of
from prolora_jax.cli.main import run
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.evaluation.grid import write_side_by_side
from prolora_jax.nets.adapters.tree import spec_of

pytestmark = pytest.mark.usefixtures("little_optimized")


class Files(NamedTuple):
    source: Path
    base: Path
    style: Path
    other: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    """A pipeline, a light tune of it, and two adapters for either."""
    folder = tmp_path_factory.mktemp("generate")
    pipe = tiny_pipelines.make_pipeline(folder / "source", "vega", short=True)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in (p for p in pipe.unet.parameters() if p.ndim > 1):
            weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
    pipe.save_pretrained(folder / "tuned")
    written = []
    for rank in (4, 2):
        net = unets.torch_net(SHORT["vega"])
        builders.add_lora(net, targets=builders.EVERYTHING, rank=rank, alpha=2 * rank, seed=rank)
        written.append(builders.save_by_diffusers(net, folder / f"rank {rank}"))
    return Files(folder / "source", folder / "tuned", *written)


@pytest.fixture(autouse=True)
def _here(monkeypatch, files):
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=unets.QUICK))
    monkeypatch.setenv("PROLORA_STORE", str(files.source.parent / "store"))
    monkeypatch.setenv("PROLORA_TRACEBACK", "1")


def draw(files: Files, out: Path, *words: str) -> int:
    base = ["--base", str(files.base), "--prompt", PROMPTS[0], "--steps", "2", "-q"]
    return run(["generate", *base, "--out", str(out), *words])


def cells(out: Path, columns: int, rows: int) -> np.ndarray:
    """The pictures out of the sheet, `(columns, rows, 16, 16, 3)`, each shown 8 times as large."""
    sheet = np.asarray(Image.open(out).convert("RGB"))
    place = [(row, column) for column in range(columns) for row in range(rows)]
    left, top = sheet.shape[1] - columns * 132, sheet.shape[0] - rows * 132
    found = [sheet[top + r * 132 : top + r * 132 + 128, left + c * 132 : left + c * 132 + 128]
             for r, c in place]  # fmt: skip
    return np.stack(found)[:, ::8, ::8].reshape(columns, rows, 16, 16, 3)


def test_arms_side_by_side(files, tmp_path, capsys):
    out, columns = tmp_path / "a.png", "source,none,copy,prolora"
    words = ["--source", str(files.source), "--lora", str(files.style), "--scale", "1.5"]
    assert draw(files, out, *words, "--arms", columns, "--seeds", "0-1", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["columns"] == columns.split(",")
    assert summary["settings"]["guidance"] == 5.0
    assert summary["settings"]["steps"] == 2
    with Image.open(out) as sheet:
        assert json.loads(sheet.info["prolora"]) == summary
    assert sum(summary["moved"]["prolora"][0].values()) == len(pl.load_adapter(files.style).modules)
    shown = cells(out, 4, 2).astype(np.float32) / 255
    # What `generate` draws with the adapter that `migrate` writes.
    pipeline, params = pl.load_pipeline(files.base)
    bases = pl.load_base_model(files.source), pl.load_base_model(files.base)
    adapter = pl.load_adapter(files.style, bases[0].spec)
    options: Any = {"steps": 2, "guidance": 5.0, "size": (16, 16), "at_once": 1}
    plain = pl.generate(pipeline, params, PROMPTS[:1], [0, 1], **options)[0]
    assert_allclose(shown[1], plain, rtol=0, atol=0.003)
    arms: tuple[Literal["copy", "prolora"], ...] = ("copy", "prolora")
    for column, method in enumerate(arms, 2):
        moved, _ = pl.migrate(adapter, *bases, pl.MigrationOptions(method=method))
        merged = pl.merge(params, moved, 1.5)
        want = pl.generate(pipeline, merged, PROMPTS[:1], [0, 1], **options)[0]
        assert_allclose(shown[column], want, rtol=0, atol=0.003)
        rms = float(np.sqrt(np.mean(np.square(want - plain))))
        assert summary["changes"][method] == pytest.approx(rms, abs=1e-4)
        assert rms > 0.01
    own, weights = pl.load_pipeline(files.source)
    want = pl.generate(own, pl.merge(weights, adapter, 1.5), PROMPTS[:1], [0, 1], **options)
    assert_allclose(shown[0], want[0], rtol=0, atol=0.003)


def test_two_adapters_of_the_base_itself_and_a_table(files, tmp_path, capsys):
    out = tmp_path / "b.png"
    words = ["--lora", str(files.style), "--lora", str(files.other), "--scale", "0.5"]
    assert draw(files, out, *words, "--scale", "-1") == 0
    printed = capsys.readouterr().out
    assert "lora" in printed
    assert f"Wrote {out}: 1 rows, 2 columns" in printed
    pipeline, params = pl.load_pipeline(files.base)
    spec = pl.load_base_model(files.base).spec
    merged = pl.merge(params, pl.load_adapter(files.style, spec), 0.5)
    merged = pl.unmerge(merged, pl.load_adapter(files.other, spec))
    options: Any = {"steps": 2, "guidance": 5.0, "size": (16, 16)}
    want = pl.generate(pipeline, merged, PROMPTS[:1], [0], **options)
    assert_allclose(cells(out, 2, 1)[1] / 255, want[0], rtol=0, atol=0.003)


FAST: dict[str, tuple[list[str], dict[str, Any]]] = {
    "lcm": (["--lcm", "OTHER"], {"sampler": "lcm"}),
    "lightning": (
        ["--always", "OTHER", "--sampler", "euler", "--spacing", "trailing", "--steps", "4"]
        + ["--guidance", "1"],
        {"sampler": "euler", "spacing": "trailing"},
    ),
}


@pytest.mark.parametrize("kind", FAST)
def test_an_adapter_in_every_column_four_steps(files, tmp_path, capsys, kind):
    words, sampling = FAST[kind]
    out = tmp_path / "c.png"
    words = [str(files.other) if word == "OTHER" else word for word in words]
    base = ["generate", "--base", str(files.base), "--prompt", PROMPTS[0], "-q"]
    assert run([*base, *words, "--out", str(out), "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["steps"], settings["guidance"]) == (4, 1.0)
    pipeline, params = pl.load_pipeline(files.base, **sampling)
    fast = pl.load_adapter(files.other, pl.load_base_model(files.base).spec)
    options: Any = {"steps": 4, "guidance": 1, "size": (16, 16)}
    want = pl.generate(pipeline, pl.merge(params, fast), PROMPTS[:1], [0], **options)
    assert_allclose(cells(out, 1, 1)[0] / 255, want[0], rtol=0, atol=0.003)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "none,odd"], "--arms odd: expected none, lora, source, delta, copy"),
        (["--arms", "copy", "--lora", "STYLE"], "--arms copy: expected --source with it"),
        (["--arms", "lora"], "--arms lora: expected --lora with it"),
        (["--lora", "STYLE", "--scale", "1", "--scale", "2"], "--scale: found 2 for 1 adapters"),
        (["--seeds", "3-1"], "--seeds 3-1: expected numbers and ranges"),
        (["--height", "17"], "size 17x16"),
        (
            ["--source", "SOURCE", "--lora", "STYLE", "--arms", "source", "--lcm", "STYLE"],
            "cannot be used by the arm source",
        ),
        (["--lcm", "STYLE", "--sampler", "ddim"], "--lcm: found --always or another --sampler"),
        (["--lora", "nowhere"], "nowhere: no such file"),
        (["--parts", "nowhere"], "nowhere: no such file or folder"),
        (["--vae-tile", "20"], "--vae-tile 20: expected auto, off, or a multiple of 8 pixels"),
        # What would do nothing.
        (["--sampler", "lcm", "--spacing", "trailing"], "--spacing trailing: found the sampler"),
        (["--lcm", "STYLE", "--spacing", "leading"], "--spacing leading: found the sampler lcm"),
        (["--negative", "ink", "--guidance", "1"], "--negative: found it without guidance above"),
        (["--negative", "ink", "--lcm", "STYLE"], "--negative: found it without guidance above 1"),
        (["--scale", "2"], "--scale: found it without --lora, where it does nothing"),
        (["--source", "SOURCE"], "--source: found it without --lora, where it does nothing"),
        (["--lora", "STYLE", "--migrate.rank", "4"], "--migrate.rank: found it without --source"),
        (
            ["--source", "SOURCE", "--lora", "STYLE", "--arms", "none,lora"],
            "--source: found it beside --arms none,lora, where it does nothing",
        ),
        (["--lora", "STYLE", "--arms", "none"], "--lora: found it beside --arms none"),
    ],
)
def test_what_cannot_be_drawn(files, tmp_path, capsys, words, message):
    names = {"STYLE": str(files.style), "SOURCE": str(files.source)}
    words = [names.get(word, word) for word in words]
    assert draw(files, tmp_path / "d.png", *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "d.png").exists()


def test_a_picture_decoded_in_tiles(files, tmp_path, capsys):
    seen = {}
    for tile in ("auto", "off", "8"):
        out = tmp_path / f"{tile}.png"
        assert draw(files, out, "--vae-tile", tile, "--json") == 0
        said = json.loads(capsys.readouterr().out)["settings"]["vae_tile"]
        assert said == (int(tile) if tile.isdigit() else tile)
        seen[tile] = cells(out, 1, 1)[0].astype(int)
    assert_array_equal(seen["off"], seen["auto"])
    assert np.abs(seen["8"] - seen["auto"]).max() > 3
    assert np.corrcoef(seen["8"].ravel(), seen["auto"].ravel())[0, 1] > 0.5


def test_another_bases_adapter_is_refused_though_it_fits(tmp_path):
    small = published_spec("ssd-1b")
    modules = [builders.random_module(p, small, rank=1) for p in small.modules if ".attn" in p]
    file = tmp_path / "ssd.safetensors"
    pl.save_adapter(Adapter(tuple(modules), "kohya-ldm"), file, base=small)
    shapes = flax_table(unet_table(CONFIGS["sdxl"]))
    params = nested({p: jax.ShapeDtypeStruct(s, np.float32) for p, s in shapes.items()})
    with pytest.raises(AdapterRefused, match=r"ssd\.safetensors: .* ssd-1b") as caught:
        fit(pl.load_adapter(file), spec_of(params))
    assert caught.value.code is Refusal.WRONG_BASE
    with pytest.raises(AdapterRefused, match="expected one for sdxl, which base model params is"):
        pl.attach(params, {"x": pl.load_adapter(file)})
    tree = pl.attach(params, {"x": pl.load_adapter(file)}, assume_base="sdxl")
    assert list(pl.attached(tree)) == ["x"]
    assumed = fit(pl.load_adapter(file), spec_of(params), "sdxl").adapter
    assert len(assumed.modules) == 272


def test_an_output_is_not_replaced_unasked(files, tmp_path, capsys):
    out = tmp_path / "e.png"
    out.write_bytes(b"mine")
    assert draw(files, out) == 2
    assert "output exists" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert draw(files, out, "--overwrite") == 0
    with Image.open(out) as sheet:
        assert sheet.size[1] > 128


def test_without_the_extra_it_says_what_to_install(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert draw(files, tmp_path / "f.png") == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "pip install 'prolora_jax[pipelines]'" in message


def test_seeds():
    assert seeds_of("0, 3-5,4") == (0, 3, 4, 5)
    for text in ("", "1,", "a", "-1", "5-4", "1-2-3", "4294967296", "0-4294967295", "9" * 5000):
        with pytest.raises(UsageError, match="expected numbers and ranges"):
            seeds_of(text)


def test_labels_are_wrapped_and_pictures_keep_their_pixels(tmp_path):
    pictures = np.random.default_rng(0).random((2, 200, 150, 3), np.float32)
    long = "a very long prompt " * 5
    write_side_by_side(
        {"one": pictures, "two\nlines": 1 - pictures}, [long, "b"], tmp_path / "x.png"
    )
    sheet = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    corner = sheet[-204:-4, -154:-4]
    assert_allclose(corner / 255, 1 - pictures[1], rtol=0, atol=0.003)
    assert (sheet[:, :130].min(axis=(1, 2)) < 128).sum() > 30  # rows with ink in them
