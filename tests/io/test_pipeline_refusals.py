"""What is refused of a pipeline on disk, and of what is asked of it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_pipelines
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file
from tiny_pipelines import PROMPTS, TEXT, VAE, WEIGHTS, edit

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.nets.pipelines.generation import generate
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a pipeline that is as it should be."""
    place = tmp_path_factory.mktemp("whole") / "tiny"
    tiny_pipelines.make_pipeline(place, "sdxl")
    # One tokenizer in the files of the published pipelines, the other as transformers 5 writes it.
    shutil.rmtree(place / "tokenizer")
    tiny_pipelines.save_tokenizer(place / "tokenizer")
    return place


@pytest.fixture(scope="module")
def loaded(whole) -> tuple[Pipeline, Any]:
    return load_pipeline(whole)


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(whole, tmp_path / "copy")


def write(file: Path, text: str) -> None:
    file.write_text(text)


def gone(name: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return remove


def holds(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: write(folder / name, text)


def says(name: str, **fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **fields)


def pickled(folder: Path) -> None:
    (folder / "vae" / VAE).rename(folder / "vae" / "diffusion_pytorch_model.bin")


def more_tokens(folder: Path) -> None:
    edit(folder / "tokenizer" / "vocab.json", another=514)


def stored(name: str, change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        file = folder / name / WEIGHTS[name]
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return rewrite


FINAL = "final_layer_norm.bias"
TEXT_CONFIG, VAE_CONFIG = "text_encoder/config.json", "vae/config.json"
MISSING, SHAPE = Refusal.MISSING_FILE, Refusal.SHAPE_MISMATCH
CONFIGURED, UNREADABLE = Refusal.UNSUPPORTED_CONFIG, Refusal.UNREADABLE_BASE
NO_JSON = "found no JSON object; expected the configuration of the pipeline"
BROKEN: list[tuple[Callable[[Path], None], str, Refusal]] = [
    (gone("vae"), "copy: found no vae/ folder; expected a diffusers pipeline's folder", UNREADABLE),
    (gone(TEXT_CONFIG), f"{TEXT_CONFIG}: {NO_JSON}'s text_encoder; fetch", MISSING),
    (holds(VAE_CONFIG, "{"), f"{VAE_CONFIG}: {NO_JSON}'s vae; fetch", MISSING),
    (holds(VAE_CONFIG, "[]"), f"{VAE_CONFIG}: {NO_JSON}'s vae; fetch", MISSING),
    (gone("unet/config.json"), f"unet/config.json: {NO_JSON}'s unet; fetch", MISSING),
    (gone("scheduler"), f"scheduler_config.json: {NO_JSON}'s scheduler; fetch", MISSING),
    (holds("model_index.json", "?"), f"model_index.json: {NO_JSON}; fetch", MISSING),
    (gone("tokenizer_2"), "tokenizer_2/vocab.json: no such file; .* of text_encoder_2", MISSING),
    (gone("tokenizer/merges.txt"), "tokenizer/merges.txt: no such file; .* text_encoder;", MISSING),
    (holds("tokenizer/vocab.json", "{"), "vocab.json: found no JSON .*; fetch the", UNREADABLE),
    (
        says("tokenizer_2/tokenizer_config.json", model_max_length=8),
        "found prompts of .*'text_encoder': 16, 'text_encoder_2': 8.* tokens; expected one length",
        CONFIGURED,
    ),
    (more_tokens, "tokenizer: found 515 tokens; expected at most 514, which the text", SHAPE),
    (gone(f"text_encoder/{TEXT}"), "text_encoder: found no weights; expected them as", MISSING),
    (pickled, "vae: found no weights; .*or convert what is there", MISSING),
    (gone("text_encoder_2"), "found text_encoder; expected text_encoder, text_enc", UNREADABLE),
    (gone("text_encoder"), "found text_encoder_2; .*SDXL's refiner, which has one", UNREADABLE),
    (
        says(VAE_CONFIG, latents_mean=[0.0] * 4),
        "field latents_mean is .*expected null;",
        CONFIGURED,
    ),
    (says(VAE_CONFIG, use_quant_conv=False), "use_quant_conv is False; expected True;", CONFIGURED),
    (says(VAE_CONFIG, act_fn="mish"), "config.json: field act_fn is 'mish'", CONFIGURED),
    (says(VAE_CONFIG, norm_num_groups=3), f"{VAE_CONFIG}: field norm_num_groups is 3", CONFIGURED),
    (says(TEXT_CONFIG, hidden_act="mish"), f"{TEXT_CONFIG}: field hidden_act is 'm", CONFIGURED),
    (says("unet/config.json", act_fn="mish"), "copy/unet/config.json: field act_fn", CONFIGURED),
    (says("unet/config.json", sample_size=[8, 8]), r"sample_size is \[8, 8\]", CONFIGURED),
    (says(TEXT_CONFIG, num_hidden_layers=2), r"layers/2/.* of shape \(8,\); .* None;", SHAPE),
    (stored("text_encoder", lambda t: t.pop(FINAL)), r"bias of shape None; .*\(8,\)", SHAPE),
    (
        stored("text_encoder", lambda t: t.update({FINAL: np.ones(7, np.float32)})),
        r"text_encoder: found text_model/final_layer_norm/bias of shape \(7,\); expected \(8,\); "
        r"the weights are not those of config\.json",
        SHAPE,
    ),
    (
        stored("vae", lambda t: t.update({"encoder.conv_in.weight": np.ones((8, 3, 1, 3, 3))})),
        r"vae: found encoder/conv_in/kernel of shape \(8, 3, 1, 3, 3\); expected \(3, 3, 3, 8\)",
        SHAPE,
    ),
    (stored("vae", lambda t: t.update({"0.weight": np.ones(2)})), "found 0/scale of shape", SHAPE),
    (stored("text_encoder", lambda t: t.update(weight=np.ones(2))), "text_model/scale", SHAPE),
]


@pytest.mark.parametrize(("spoil", "match", "code"), BROKEN)
def test_what_is_refused(spoil, match, code, folder):
    spoil(folder)
    with pytest.raises(BaseModelError, match=match) as caught:
        load_pipeline(folder)
    assert caught.value.code is code
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"size": (12, 16)}, "size 12x16, 4 at once: expected multiples of 8, 1 or more"),
        ({"size": (16, 0)}, "size 16x0, 4 at once: expected multiples of 8"),
        ({"at_once": 0}, "size 16x16, 0 at once: expected multiples of 8, 1 or more"),
        ({"steps": 0}, "steps 0: expected 1 to 1000"),
        ({"steps": 1001}, "steps 1001: expected 1 to 1000, the times that the net was trained"),
        ({"noise": np.zeros((1, 2, 4, 8, 8))}, r"shape .1, 2, 4, 8, 8.: expected .2, 1, 4, 8, 8."),
        ({"seeds": []}, "2 prompts, 0 seeds: expected at least one of each"),
        ({"prompts": []}, "0 prompts, 1 seeds: expected at least one of each"),
        (
            {"mesh": Mesh(np.array(jax.devices()), ("x",))},
            "mesh .*'x',.*: expected one called data",
        ),
    ],
)
def test_what_cannot_be_drawn(given: dict[str, Any], match: str, loaded):
    options: dict[str, Any] = {"prompts": PROMPTS, "seeds": [0]} | given
    with pytest.raises(UsageError, match=match) as caught:
        generate(*loaded, **options)
    assert caught.value.code is Refusal.BAD_OPTION
