"""Diffusion transformers that have nothing in common are refused, whatever their names say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dit_tables import tiny, weights
from safetensors.numpy import save_file

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.fitting import Fitted
from prolora_jax.architectures.identify import published_spec
from prolora_jax.errors import Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.matching.matching import match_modules
from prolora_jax.migration.base_similarity import similarity
from prolora_jax.migration.kinship import (
    Strangers,
    UnlikeFamilies,
    UnlikeWidths,
    require_a_common_shape,
    require_one_family,
)
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import plan_fitted
from prolora_jax.plans.options import MigrationOptions

OPTIONS = MigrationOptions()
WIDTH_PAIRS = [
    ("flux2-klein-9b", "flux2-klein-4b"),
    ("flux2-klein-4b", "flux2-klein-9b"),
    ("sd35-large", "sd35-medium"),
    ("flux1-dev", "flux2-dev"),
    ("flux2-dev", "flux2-klein-9b"),
    ("hunyuan-video", "hunyuan-video15"),
    ("wan21-t2v-14b", "wan21-t2v-1-3b"),
    ("ltx-video-2b", "ltx-video-13b"),
    ("cosmos-predict2-2b", "cosmos-predict2-14b"),
]
DEPTH_PAIRS = [("flux1-dev", "flex1-alpha"), ("sana-1600m", "sana15-4800m")]


def no_evidence(*_: object) -> np.ndarray:
    raise AssertionError("asked for evidence where no shapes fit")


@pytest.mark.parametrize(("source", "target"), WIDTH_PAIRS)
def test_other_widths_are_strangers(source, target):
    models = [BaseModel(published_spec(name), f"bases/{name}", {}) for name in (source, target)]
    pairs = match_modules(models[0].spec, models[1].spec, no_evidence, "block").pairs
    with pytest.raises(UnlikeWidths, match=r"unlike widths \(transformer\.") as refused:
        require_a_common_shape(models[0], models[1], pairs)
    said = str(refused.value)
    assert f"bases/{source} and bases/{target}: found" in said
    assert "strangers, whose names look the same" in said
    assert "prolora refine" not in said
    assert "\n" not in said
    assert (refused.value.code, refused.value.exit_code) == (Refusal.UNRELATED, 1)


@pytest.mark.parametrize(("source", "target"), DEPTH_PAIRS)
def test_other_depths_are_not(source, target):
    models = [BaseModel(published_spec(name), name, {}) for name in (source, target)]
    by_name = match_modules(models[0].spec, models[1].spec, no_evidence, "name").pairs
    require_a_common_shape(models[0], models[1], by_name)


@pytest.mark.parametrize("source", ["flux1-dev", "chroma1"])
def test_unlike_families_are_strangers_before_a_weight_is_read(source):
    # Qwen-Image's blocks have names and shapes of Flux's; there are no weights to read here.
    models = [
        BaseModel(published_spec(name), f"bases/{name}", {}) for name in (source, "qwen-image")
    ]
    path = "transformer.transformer_blocks.0.attn.to_q"
    assert models[0].spec.modules[path] == models[1].spec.modules[path]
    down, up = np.ones((1, 3072), np.float32), np.ones((3072, 1), np.float32)
    adapter = Adapter((LoraModule(path, down, up),), "diffusers", origin="a")
    with pytest.raises(UnlikeFamilies, match=rf"bases/{source} and .*, qwen-image\)") as refused:
        plan_fitted(Fitted(adapter), BasePair(models[0], models[1]), OPTIONS)
    assert refused.value.code is Refusal.UNRELATED


def test_a_family_made_from_another_is_its_relative():
    models = [BaseModel(published_spec(name), name, {}) for name in ("flux1-schnell", "chroma1")]
    require_one_family(models[0], models[1])
    require_one_family(models[1], models[0])


def saved(file: Path, tensors: dict[str, np.ndarray]) -> BaseModel:
    save_file(tensors, file)
    return load_base_model(file)


def test_equal_shapes_without_a_common_weight(tmp_path):
    own = weights(tiny("qwen"))
    source = saved(tmp_path / "source.safetensors", own)
    other = saved(tmp_path / "other.safetensors", weights(tiny("qwen"), 1))
    pair = BasePair(source, other)
    pairs = pair.matching("auto", OPTIONS).pairs
    with pytest.raises(Strangers, match="nothing in common .*; expected relatives") as refused:
        pair.require_kinship(pairs, OPTIONS)
    assert refused.value.code is Refusal.UNRELATED
    pair.require_kinship(pairs, MigrationOptions(min_similarity=-1.0))
    tuned = {key: value + 0.3 * weights(tiny("qwen"), 2)[key] for key, value in own.items()}
    relative = BasePair(source, saved(tmp_path / "tuned.safetensors", tuned))
    relative.require_kinship(relative.matching("auto", OPTIONS).pairs, OPTIONS)


def test_similarity_says_that_shapes_do_not_name_a_model(tmp_path):
    """A toy net stands for the published one, whose weights fill a disk."""
    found = saved(tmp_path / "mine.safetensors", weights(tiny("flux")))
    krea = replace(found, spec=replace(found.spec, family="flux1-dev"))
    compared = similarity(found, krea)
    assert compared.relation.word == "close relatives"
    (said,) = compared.lookalikes
    assert said.startswith("mine: flux1-dev by the shapes of its modules, as are FLUX.1 Krea dev")
