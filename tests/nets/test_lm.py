"""Language models beside transformers', on random weights: logits, and what they write."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from language_models import FAMILIES, make_language_pair, merged

from prolora_jax.errors import BaseModelError
from prolora_jax.nets.lm.loading import load_lm
from prolora_jax.nets.lm.writing import written

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2")
IDS = np.random.default_rng(0).integers(1, 40, (2, 9))


def logits_of(net: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    told = {} if mask is None else {"attention_mask": torch.from_numpy(mask)}
    with torch.no_grad():
        return net(torch.from_numpy(ids), **told).logits.numpy()


def largest_difference(found: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    net = FAMILIES[kind].build(2, seed=0)
    net.save_pretrained(tmp_path)
    model, params = load_lm(tmp_path)
    found: Any = jax.jit(model.apply)({"params": params}, jnp.asarray(IDS))
    assert largest_difference(found.logits, logits_of(net, IDS)) < 2e-6


def test_positions_are_scaled_as_llama_3_does(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    sizes = {**FAMILIES["llama"].sizes, "rope_scaling": scaling, "rope_theta": 500.0}
    net = FAMILIES["llama"].__class__("Llama", (), sizes).build(2, seed=0)
    net.save_pretrained(tmp_path)
    model, params = load_lm(tmp_path)
    assert model.config.rope.context == 16
    found: Any = model.apply({"params": params}, jnp.asarray(IDS))
    assert largest_difference(found.logits, logits_of(net, IDS)) < 2e-6


def test_padding_on_the_left_changes_nothing(tmp_path: Path) -> None:
    net = FAMILIES["qwen3"].build(2, seed=0)
    net.save_pretrained(tmp_path)
    model, params = load_lm(tmp_path)
    padded = np.concatenate([np.zeros((2, 3), int), IDS], axis=1)
    real = np.arange(12)[None].repeat(2, 0) >= 3
    found: Any = model.apply({"params": params}, jnp.asarray(padded), jnp.asarray(real))
    assert largest_difference(found.logits[:, 3:], logits_of(net, IDS)) < 2e-6


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_what_is_written_with_caches_is_what_torch_writes(kind: str, tmp_path: Path) -> None:
    net = FAMILIES[kind].build(2, seed=0)
    net.save_pretrained(tmp_path)
    model, params = load_lm(tmp_path)
    ids = IDS
    for _ in range(6):  # the whole text again for each token: no caches
        ids = np.concatenate([ids, logits_of(net, ids)[:, -1:].argmax(-1)], axis=1)
    real = jnp.ones(IDS.shape, bool)
    found = written(
        model, params, jnp.asarray(IDS), real, jax.random.key(0), length=6, temperature=0.0
    )
    np.testing.assert_array_equal(found, ids)


def test_a_merged_adapter_predicts_what_peft_merges(tmp_path: Path) -> None:
    pair = make_language_pair(tmp_path, "llama")
    net = merged(pair.source_net, pair.adapter)
    net.save_pretrained(tmp_path / "merged")
    model, params = load_lm(tmp_path / "merged")
    found: Any = model.apply({"params": params}, jnp.asarray(IDS))
    assert largest_difference(found.logits, logits_of(net, IDS)) < 2e-6


@pytest.mark.parametrize("kind", ["phi3", "gpt2"])
def test_kinds_that_are_not_computed_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    FAMILIES[kind].build(1, seed=0).save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=f"found model_type '{kind}'; expected llama"):
        load_lm(tmp_path)
