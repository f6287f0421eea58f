"""Folders of pictures by tiny encoders: torch's embeddings, each once, and what is refused."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import encoder_files
import jax.numpy as jnp
import numpy as np
import pytest
import sharded_scoring
import torch
from eight_devices import found_by
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from prolora_jax.errors import BaseModelError, UsageError
from prolora_jax.evaluation import scoring
from prolora_jax.evaluation.encoders import (
    ENCODERS,
    load_encoder,
    load_lpips,
    load_text_tensors,
)
from prolora_jax.evaluation.metrics.preprocessing import prepare
from prolora_jax.evaluation.scoring import embed_folder, lpips_distances
from prolora_jax.nets.vision.lpips import Lpips

RTOL = 1e-5  # of the largest number
PICTURES = 7


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("weights")
    return folder, encoder_files.write_weights(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return encoder_files.write_pictures(tmp_path_factory.mktemp("pictures"), PICTURES)


@pytest.mark.parametrize("name", encoder_files.TINY)
def test_every_layout_embeds_as_torch(weights, pictures, name):
    folder, nets = weights
    encoder = load_encoder(name, folder)
    found = embed_folder(encoder, pictures[0].parent, at_once=4)
    assert found.paths == tuple(pictures)
    opened: list[Image.Image] = [Image.open(path) for path in pictures]
    if name == "clip":
        given = CLIPImageProcessorPil()(images=opened, return_tensors="pt")["pixel_values"]
    else:  # test_metrics_preprocessing.py has these
        ready = np.stack([prepare(picture, encoder.preprocessing) for picture in opened])
        given = torch.from_numpy(ready).permute(0, 3, 1, 2)
    with torch.no_grad():
        is_clip = "clip" in encoder_files.TINY[name]["model_type"]
        more = {"interpolate_pos_encoding": True} if is_clip else {}
        out = nets[name](given, **more)
    want = (out.image_embeds if is_clip else out.pooler_output).numpy()
    assert_allclose(found.embeddings, want, rtol=0, atol=RTOL * np.abs(want).max())
    assert encoder.width == want.shape[1]


def test_each_picture_is_embedded_once(weights, pictures, tmp_path):
    encoder = load_encoder("clip", weights[0])
    folder = pictures[0].parent
    calls = []
    inner = scoring._embeddings
    with patch.object(scoring, "_embeddings", lambda *a: calls.append(len(a[2])) or inner(*a)):
        first = embed_folder(encoder, folder, at_once=3, keep=tmp_path)
        assert sum(calls) == PICTURES
        calls.clear()
        again = embed_folder(encoder, folder, at_once=3, keep=tmp_path)
        assert sum(calls) == 0
        assert_array_equal(again.embeddings, first.embeddings)
        # A damaged file is as good as none; another encoder has a folder of its own.
        kept = sorted(tmp_path.rglob("*.npy"))
        assert len(kept) == PICTURES
        kept[2].write_bytes(kept[2].read_bytes()[:-5])
        healed = embed_folder(encoder, folder, at_once=3, keep=tmp_path)
        assert sum(calls) == 1
        assert_allclose(healed.embeddings, first.embeddings, rtol=1e-4, atol=1e-5)
        calls.clear()
        embed_folder(load_encoder("dinov2-small", weights[0]), folder, keep=tmp_path)
        assert sum(calls) == PICTURES


def test_one_program_for_every_batch(weights, pictures):
    encoder = load_encoder("clip", weights[0])
    scoring._program.cache_clear()
    embed_folder(encoder, pictures[0].parent, at_once=3)
    assert scoring._program(encoder.net.config, encoder.net.dtype)._cache_size() == 1


def test_pictures_over_eight_devices(weights, pictures):
    found = found_by(Path(sharded_scoring.__file__), str(weights[0]), str(pictures[0].parent))
    close = pytest.approx(0, abs=RTOL)
    # Pictures and references over all devices, then on one.
    over = {"judged over": [8, 8, 1, 1], "apart": close}
    assert found == {"devices": 8, "rows": PICTURES, "error": close} | over


def test_bad_pictures_are_listed_and_others_judged(weights, pictures, tmp_path):
    good = encoder_files.write_pictures(tmp_path, 2)
    (tmp_path / "cut.png").write_bytes(good[0].read_bytes()[:2000])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "words.webp").write_text("no picture")
    Image.new("RGB", (3000, 1)).save(tmp_path / "line.png")
    encoder = load_encoder("hps-v2.1", weights[0])
    found = embed_folder(encoder, tmp_path)
    assert found.paths == tuple(good)
    reasons = {one.path.name: one.reason for one in found.rejected}
    assert {*reasons} == {"cut.png", "empty.jpg", "words.webp", "line.png"}
    assert "cannot be read as a picture" in reasons["cut.png"]
    assert "3000 x 1 pixels: expected" in reasons["line.png"]
    for path in good:
        path.unlink()
    with pytest.raises(UsageError, match="found 4 pictures, none of which can be read"):
        embed_folder(encoder, tmp_path)


def test_folders_without_pictures(weights, tmp_path):
    encoder = load_encoder("clip", weights[0])
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UsageError, match="found 1 files, no picture; expected a folder with pic"):
        embed_folder(encoder, tmp_path)
    with pytest.raises(UsageError, match="no such folder; expected a folder with pictures"):
        embed_folder(encoder, tmp_path / "nothing")
    with pytest.raises(UsageError, match="0 pictures at once: expected at least 1"):
        next(scoring.embed(encoder, [], at_once=0))


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="encoder 'x': expected one of clip, openclip-h, hps"):
        load_encoder("x", tmp_path)
    for name, known in ENCODERS.items():
        weights = known.weights
        message = f"{name}.safetensors: no such file; .* as {weights.file} of {weights.hub_id}"
        with pytest.raises(UsageError, match=message):
            load_encoder(name, tmp_path)
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"found HPS_v2.1_compressed.pt, a pickle, which may run"):
        load_encoder("hps-v2.1", tmp_path)
    with pytest.raises(UsageError, match=r"xswu/HPSv2 has its weights as .* a pickle"):
        load_encoder("hps-v2.1")


def test_files_of_another_encoder(weights, tmp_path):
    folder, _ = weights
    clip = load_file(folder / "clip" / "model.safetensors")
    save_file(clip, tmp_path / "clip.safetensors")  # without its configuration: not the real one
    with pytest.raises(BaseModelError, match=r"clip.safetensors: 392 of 392 tensors are not those"):
        load_encoder("clip", tmp_path)
    with pytest.raises(BaseModelError, match=r"class_embedding: found \(24,\), expected \(1024,\)"):
        load_encoder("clip", tmp_path)
    save_file(clip, tmp_path / "csd.safetensors")
    with pytest.raises(BaseModelError, match="found no tensor last_layer_style, the mark of CSD"):
        load_encoder("csd", tmp_path)
    style = load_file(folder / "csd" / "model.safetensors")
    save_file(style, tmp_path / "clip.safetensors")
    with pytest.raises(BaseModelError, match="found a tensor last_layer_style, .* no such for"):
        load_encoder("clip", tmp_path)
    dino = load_file(folder / "dinov2-small" / "model.safetensors")
    (tmp_path / "dinov2-small").mkdir()
    config = (folder / "dinov2-small" / "config.json").read_bytes()
    (tmp_path / "dinov2-small" / "config.json").write_bytes(config)
    dino["layernorm.bias"][3] = np.nan
    save_file(dino, tmp_path / "dinov2-small" / "model.safetensors")
    with pytest.raises(BaseModelError, match="not finite in 1 tensors, the first layernorm/bias"):
        load_encoder("dinov2-small", tmp_path)


def test_text_towers_come_in_transformers_names(weights, tmp_path):
    found = load_text_tensors("hps-v2.1", weights[0])
    assert {*found} == {"text_model.embeddings.token_embedding.weight"}
    text = {"text_model.x": np.ones(2, np.float32), "text_projection.weight": np.ones((2, 2))}
    save_file(
        text | {"logit_scale": np.ones(()), "visual_projection.weight": np.ones((2, 2))},
        tmp_path / "clip.safetensors",
    )
    assert {*load_text_tensors("clip", tmp_path)} == {*text}
    with pytest.raises(BaseModelError, match="none of a text tower; expected CLIP's"):
        load_text_tensors("dinov2-small", weights[0])


@pytest.fixture(scope="module")
def lpips(tmp_path_factory) -> tuple[Lpips, Any]:
    widths = (2, 3, 4, 3, 2)
    folder, rng = tmp_path_factory.mktemp("lpips"), np.random.default_rng(0)
    trunk, before = {}, 3
    stages = (0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for number, stage in zip(numbers, stages, strict=True):
        shape = (widths[stage], before, 3, 3)
        trunk[f"features.{number}.weight"] = rng.standard_normal(shape).astype(np.float32)
        trunk[f"features.{number}.bias"] = np.zeros(widths[stage], np.float32)
        before = widths[stage]
    heads = {
        f"lin{i}.model.1.weight": rng.random((1, w, 1, 1), np.float32) for i, w in enumerate(widths)
    }
    save_file(trunk | {"classifier.0.bias": np.ones(3)}, folder / "vgg16.safetensors")
    save_file(heads, folder / "lpips-heads.safetensors")
    return load_lpips(folder, widths=widths)


def test_lpips_of_all_pairs_is_that_of_each(lpips, pictures):
    net, params = lpips
    found = lpips_distances(net, params, pictures[:4], at_once=3)
    assert_array_equal(found, found.T)
    assert not np.diag(found).any()
    ready = [jnp.asarray(scoring._lpips_pixels(path)[None]) for path in pictures[:4]]
    for i, j in ((0, 1), (0, 3), (2, 3)):
        want = float(np.asarray(net.apply({"params": params}, ready[i], ready[j]))[0])
        assert found[i, j] == pytest.approx(want, rel=1e-4)


def test_pictures_that_lpips_needs(lpips, pictures, tmp_path):
    net, params = lpips
    with pytest.raises(UsageError, match="LPIPS: found 1 pictures; expected at least 2"):
        lpips_distances(net, params, pictures[:1])
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UsageError, match="empty.png: cannot be read as a picture"):
        lpips_distances(net, params, [pictures[0], tmp_path / "empty.png"])
