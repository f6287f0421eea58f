"""Base models by hub id: which files are asked for, and what is said when none comes."""

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import builders
import checkpoints
import huggingface_hub
import pytest
from dit_tables import tiny, weights
from huggingface_hub import constants
from language_models import FAMILIES
from safetensors.numpy import save_file

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.base_models.hub import fetch_base_model, is_hub_id

HUB_ID = "some-org/tiny-xl"
UNET = "unet/diffusion_pytorch_model.safetensors"
FOR_PICTURES = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}
NEVER_READ = {
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "tiny.safetensors",
    "unet/openvino_model.bin",
    "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae_decoder/model.onnx",
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A pipeline's folder with everything that hubs have."""
    folder = tmp_path_factory.mktemp("hub") / "pipeline"
    unet = builders.build_unet(builders.TINY_XL)
    builders.save_folder(unet, folder)
    builders.save_folder(unet.half(), folder, variant="fp16")
    builders.save_folder(unet, folder, variant="non_ema")
    checkpoints.text_encoder().save_pretrained(folder / "text_encoder")
    for name in (*FOR_PICTURES, *NEVER_READ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"large")
    return folder


@pytest.fixture
def hub(pipeline, tmp_path, monkeypatch) -> Path:
    """Stands in for the hub; what has been fetched is in the folder."""
    cache = tmp_path / "0123abcd"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub_of(pipeline, cache))
    return cache


def hub_of(given: Path, cache: Path) -> Callable[..., str]:
    def snapshot_download(repo: str, *, allow_patterns: list[str], ignore_patterns: list[str]):
        assert repo == HUB_ID
        cache.mkdir(exist_ok=True)
        for file in given.rglob("*"):
            name = file.relative_to(given).as_posix()
            wanted = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if file.is_file() and wanted and not any(fnmatch(name, p) for p in ignore_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / name)
        return str(cache)

    return snapshot_download


def fetched(cache: Path) -> set[str]:
    return {file.relative_to(cache).as_posix() for file in cache.rglob("*") if file.is_file()}


def test_a_pipeline_is_fetched_without_what_nobody_reads(hub, pipeline):
    model = load_base_model(HUB_ID)
    assert (model.spec.name, model.location) == ("tiny-xl", HUB_ID)
    assert fetched(hub) == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
    }
    local = load_base_model(pipeline)
    assert model.spec.modules == local.spec.modules
    assert model.fingerprint("unet.conv_in") == local.fingerprint("unet.conv_in")


def test_a_variant_is_fetched_where_nothing_else_is(hub, pipeline):
    full = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    content = full.read_bytes()
    full.unlink()
    try:
        load_base_model(HUB_ID)
    finally:
        full.write_bytes(content)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in fetched(hub)
    assert not any("non_ema" in name for name in fetched(hub))


def test_for_pictures_everything_else_comes_too(hub):
    assert fetch_base_model(HUB_ID) == hub
    unet_and_text = fetched(hub)
    assert fetch_base_model(HUB_ID, for_pictures=True) == hub
    assert fetched(hub) == unet_and_text | FOR_PICTURES


@pytest.mark.parametrize("lacking", [UNET, "text_encoder/model.safetensors"])
def test_a_full_vae_does_not_stand_for_other_weights(hub, pipeline, lacking):
    full, half = pipeline / lacking, pipeline / lacking.replace(".", ".fp16.")
    was_there, content = half.exists(), full.read_bytes()
    half.write_bytes(content)
    full.unlink()
    try:
        fetch_base_model(HUB_ID, for_pictures=True)
    finally:
        full.write_bytes(content)
        if not was_there:
            half.unlink()
    # Half precision only of the part that has nothing else.
    assert [name for name in fetched(hub) if "fp16" in name] == [lacking.replace(".", ".fp16.")]


def test_a_language_model_is_fetched_without_its_other_files(tmp_path, monkeypatch):
    given, cache = tmp_path / "given", tmp_path / "0123abcd"
    FAMILIES["llama"].build(1, seed=0).save_pretrained(given, max_shard_size="20KB")
    for name in ("tokenizer.json", "mergekit_config.yml", "pytorch_model.bin", "original.gguf"):
        (given / name).write_bytes(b"{}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub_of(given, cache))
    monkeypatch.chdir(tmp_path)
    model = load_base_model(HUB_ID)
    assert "lm.model.layers.0.mlp.up_proj" in model.spec.modules
    names = fetched(cache)
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < names
    assert "mergekit_config.yml" in names
    assert not names & {"pytorch_model.bin", "original.gguf"}


def test_offline_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    match = rf"{HUB_ID}: no such local path, and it could not be fetched .*; give a local folder"
    with pytest.raises(BaseModelError, match=match) as caught:
        load_base_model(HUB_ID)
    assert caught.value.code is Refusal.UNREADABLE_BASE
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_local_path_is_never_asked_for(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(HUB_ID).mkdir(parents=True)
    with pytest.raises(BaseModelError, match="found an empty folder"):
        load_base_model(HUB_ID)
    assert not fetched(hub)


@pytest.mark.parametrize(
    "text", ["a", "/a/b", "./a", "../a/b", "a/b/c", "a/b.safetensors", "a/b.CKPT", "a/", "a b/c"]
)
def test_paths_are_no_ids(text, hub):
    assert not is_hub_id(text)
    with pytest.raises(UsageError, match="no such file or folder; expected a base model"):
        load_base_model(text)


def test_ids():
    assert is_hub_id("stabilityai/stable-diffusion-xl-base-1.0")
    assert is_hub_id("segmind/SSD-1B")


def test_of_a_transformer_only_encoders_of_clip_are_fetched(tmp_path, monkeypatch):
    given, cache = tmp_path / "given", tmp_path / "0123abcd"
    (given / "transformer").mkdir(parents=True)
    save_file(weights(tiny("flux")), given / "transformer" / "diffusion_pytorch_model.safetensors")
    checkpoints.text_encoder().save_pretrained(given / "text_encoder")
    for part, kind in (("text_encoder_2", "t5"), ("text_encoder_3", "t5")):
        (given / part).mkdir()
        (given / part / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        (given / part / "model-00001-of-00002.safetensors").write_bytes(b"large")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub_of(given, cache))
    monkeypatch.chdir(tmp_path)
    assert load_base_model(HUB_ID).spec.layer_names.components == ("transformer",)
    assert {name for name in fetched(cache) if name.endswith(".safetensors")} == {
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
