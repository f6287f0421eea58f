"""Pipelines on disk: every container, names and layouts, parts from elsewhere."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_pipelines
import torch
import unets
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file
from tiny_pipelines import LENGTH, PROMPTS, UNETS, WEIGHTS, edit

from prolora_jax.architectures.flax_parts import text_encoder_to_flax, vae_to_flax
from prolora_jax.architectures.flax_trees import leaves
from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline

CONFIG = UNETS["sdxl"]


class Made(NamedTuple):
    """One pipeline: its folder, as torch's, and as ours."""

    folder: Path
    torch: Any
    pipeline: Pipeline
    params: Any


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("made") / "tiny"
    return Made(folder, tiny_pipelines.make_pipeline(folder, "sdxl"), *load_pipeline(folder))


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(made.folder, tmp_path / "copy")


def assert_same(found: Any, expected: Any) -> None:
    found, expected = dict(leaves(found)), dict(leaves(expected))
    assert found.keys() == expected.keys()
    for place, array in expected.items():
        assert_array_equal(found[place], np.asarray(array), err_msg=place)


# --- names and layouts, as tests/support has them, and tests/stock from the Flax classes ---


def of_torch(net: Any) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in net.state_dict().items()}


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_text_encoders_have_the_names_and_numbers_of_transformers(made, name):
    net = getattr(made.torch, name)
    state = {key: tensor.numpy() for key, tensor in checkpoints.text_state(net).items()}
    shapes = made.params[name]
    tree = text_encoder_to_flax(state)
    assert_same(tree, checkpoints.flax_text_encoder(net))
    assert {k: a.shape for k, a in leaves(tree)} == {k: a.shape for k, a in leaves(shapes)}
    place = tree["text_model"]["encoder"]["layers"]["1"]["self_attn"]["q_proj"]["kernel"]
    square = state["text_model.encoder.layers.1.self_attn.q_proj.weight"]
    assert_array_equal(place, square.T)
    assert np.abs(place - square).max() > 0.01
    # Names since transformers 5, of one class and of both; a buffer of old files.
    assert_same(text_encoder_to_flax(of_torch(net)), tree)
    assert_same(
        text_encoder_to_flax({k.removeprefix("text_model."): a for k, a in state.items()}), tree
    )
    buffer = {"text_model.embeddings.position_ids": np.arange(LENGTH)[None]}
    assert_same(text_encoder_to_flax(buffer | state), tree)


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_name(key: str) -> str:
    for new, old in OLD.items():
        key = key.replace(f".{new}.", f".{old}.")
    return key


def test_vaes_have_the_names_and_numbers_of_diffusers(made):
    state, shapes = of_torch(made.torch.vae), made.params["vae"]
    tree = vae_to_flax(state)
    assert_same(tree, checkpoints.flax_vae(made.torch.vae.state_dict()))
    assert {k: a.shape for k, a in leaves(tree)} == {k: a.shape for k, a in leaves(shapes)}
    attention, key = tree["decoder"]["mid_block"]["attentions_0"], "decoder.mid_block.attentions.0"
    for new, old in OLD.items():
        square = state[f"{key}.{new}.weight"]
        assert_array_equal(attention[old]["kernel"], square.T)
        assert np.abs(square - square.T).max() > 0.01
    conv = state["decoder.up_blocks.0.resnets.1.conv1.weight"]
    kernel = tree["decoder"]["up_blocks_0"]["resnets_1"]["conv1"]["kernel"]
    assert_array_equal(kernel, np.einsum("oihw->hwio", conv))
    # Old names; a linear layer as a 1x1 convolution.
    renamed = {old_name(k): a for k, a in state.items()}
    assert len(renamed.keys() - state.keys()) == 16
    assert_same(vae_to_flax(renamed), tree)
    for names in (state, renamed):
        as_convs = {
            k: a[:, :, None, None] if "attentions" in k and a.ndim == 2 else a
            for k, a in names.items()
        }
        assert_same(vae_to_flax(as_convs), tree)


# --- containers ---


def as_msgpack(made: Made, folder: Path) -> None:
    for name in ("text_encoder", "text_encoder_2", "vae"):
        (folder / name / WEIGHTS[name]).unlink()
        file = "diffusion_flax_model" if name == "vae" else "flax_model"
        host = jax.tree.map(np.asarray, made.params[name])
        (folder / name / f"{file}.msgpack").write_bytes(flax.serialization.to_bytes(host))


def as_orbax(made: Made, folder: Path) -> None:
    for name in ("text_encoder_2", "vae"):
        (folder / name / WEIGHTS[name]).unlink()
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / name / "params", jax.tree.map(np.asarray, made.params[name]))


def in_shards(made: Made, folder: Path) -> None:
    for name, size in (("text_encoder", "8KB"), ("vae", "40KB")):
        (folder / name / WEIGHTS[name]).unlink()
        getattr(made.torch, name).save_pretrained(folder / name, max_shard_size=size)
        assert len(list((folder / name).glob("*-of-*.safetensors"))) > 1


@pytest.mark.parametrize("stored", [as_msgpack, as_orbax, in_shards])
def test_other_containers(stored: Callable[[Made, Path], None], made, folder):
    stored(made, folder)
    pipeline, params = load_pipeline(folder)
    assert_same(params, made.params)
    assert pipeline.vae.config == made.pipeline.vae.config


def test_half_precision_only_where_nothing_else_is(made, folder):
    rounded = {}
    for name, file in WEIGHTS.items():
        full = load_file(folder / name / file)
        rounded[name] = {key: array.astype(np.float16) for key, array in full.items()}
        save_file(rounded[name], folder / name / file.replace(".", ".fp16."))
    assert_same(load_pipeline(folder)[1], made.params)
    for name, file in WEIGHTS.items():
        (folder / name / file).unlink()
    _, params = load_pipeline(folder)
    assert {a.dtype for _, a in leaves(params)} == {jnp.dtype("float32")}
    half = jax.tree.map(lambda a: np.asarray(a).astype(np.float16).astype(np.float32), made.params)
    assert_same(params, half)


# --- parts from elsewhere ---


def alone(made: Made, place: Path) -> Path:
    return shutil.copytree(made.folder / "unet", place / "mine")


def without_config(made: Made, place: Path) -> Path:
    (alone(made, place) / "config.json").unlink()
    return place / "mine"


def single(made: Made, place: Path) -> Path:
    return checkpoints.save_single_file(place / "a.safetensors", made.torch.unet.state_dict())


def single_ldm(made: Made, place: Path) -> Path:
    states = checkpoints.ldm_state(made.torch.unet), {"first_stage_model.x": torch.ones(2)}
    return checkpoints.save_single_file(place / "a.safetensors", *states)


@pytest.mark.parametrize("unet", [alone, without_config, single, single_ldm])
def test_a_unet_with_the_parts_of_a_pipeline(unet: Callable[..., Path], made, tmp_path, caplog):
    path = unet(made, tmp_path)
    pipeline, params = load_pipeline(path, parts=made.folder)
    assert_same(params, made.params)
    assert pipeline.unet == made.pipeline.unet
    assert pipeline.sample_size == made.pipeline.sample_size == 8
    said = f"{path}: only its UNet is used; everything else is from {made.folder}"
    assert [r.message for r in caplog.records] == ([said] if path.is_file() else [])
    found = "a single file" if path.is_file() else "no vae/ folder"
    with pytest.raises(BaseModelError, match=rf"{path}: found {found}; .*\(--parts;") as caught:
        load_pipeline(path)
    assert caught.value.code is Refusal.UNREADABLE_BASE


def test_another_unet_than_the_pipelines_is_used(made, tmp_path):
    other = unets.save(unets.torch_net(CONFIG, seed=5), tmp_path / "other")
    edit(other / "config.json", sample_size=4)
    pipeline, params = load_pipeline(other, parts=made.folder)
    assert pipeline.pixels == 8
    assert np.abs(params["unet"]["conv_in"]["bias"] - made.params["unet"]["conv_in"]["bias"]).max()
    assert_same(params["vae"], made.params["vae"])
    with pytest.raises(UsageError, match="none: no such file or folder") as caught:
        load_pipeline(other, parts=tmp_path / "none")
    assert caught.value.code is Refusal.MISSING_FILE


@pytest.mark.parametrize("stored", [True, False, None])
def test_no_negative_prompt_is_zeros_where_it_is_in_torch(stored, made, folder):
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=stored, tokens=None)
    config: Any = StableDiffusionXLPipeline.from_pretrained(folder).config
    want = config.force_zeros_for_empty_prompt
    assert load_pipeline(folder)[0].zeros_for_empty is want is (stored is not False)


def test_prompts_are_no_longer_than_the_encoder(made, folder):
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    edit(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=77)
    long = ["paper " * 40, "ink"]
    found = load_pipeline(folder)[0].tokens(long)
    assert found.shape == (2, 2, LENGTH)
    assert_array_equal(found, made.pipeline.tokens(long))


def test_a_tokenizer_in_two_files(made, folder):
    # As published; transformers 5 writes one.
    for name in ("tokenizer", "tokenizer_2"):
        assert not (folder / name / "vocab.json").exists()
        shutil.rmtree(folder / name)
        tiny_pipelines.save_tokenizer(folder / name)
        assert not (folder / name / "tokenizer.json").exists()
    assert_array_equal(load_pipeline(folder)[0].tokens(PROMPTS), made.pipeline.tokens(PROMPTS))


def test_a_prompt_that_is_cut_off_is_said(made, caplog):
    made.pipeline.tokens(["short"])
    assert not caplog.text
    made.pipeline.tokens(["rather long, this one"])
    assert "this one': 20 tokens, of which text_encoder sees 16" in caplog.text
