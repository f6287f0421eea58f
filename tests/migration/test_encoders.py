"""Adapters of BERT encoders, by peft: what moves is the update of the layer that was kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import randomised
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertForMaskedLM, BertModel

from prolora_jax.errors import Refusal
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.kinship import Strangers
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions

KEPT = (0, 2)
COPY = MigrationOptions(method="copy")
ROLES = ("query", "key", "value", "dense")


def encoder(depth: int, seed: int) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30,
        hidden_size=24,
        intermediate_size=40,
        num_attention_heads=3,
        num_hidden_layers=depth,
        max_position_embeddings=16,
    )
    return BertModel(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    source, target = encoder(3, seed=0), encoder(2, seed=1)
    given = source.state_dict()
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            origin = given[from_layer(name)]
            tensor.copy_(origin + 0.001 * torch.randn(origin.shape))
    encoder(2, seed=7).save_pretrained(folder / "stranger")
    source.save_pretrained(folder / "source")
    target.save_pretrained(folder / "target")
    masked = BertForMaskedLM(source.config)
    masked.bert.load_state_dict(source.state_dict(), strict=False)
    masked.save_pretrained(folder / "with-head")
    kind = "FEATURE_EXTRACTION"
    config = LoraConfig(r=2, lora_alpha=6, target_modules=list(ROLES), task_type=kind)
    adapted: Any = get_peft_model(source, config)
    randomised(adapted)
    adapted.save_pretrained(str(folder / "adapter"))
    return folder


def from_layer(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "encoder":
        parts[2] = str(KEPT[int(parts[2])])
    return ".".join(parts)


def updates(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """What peft adds to each weight of a model."""
    before = BertModel.from_pretrained(base).state_dict()
    after: Any = PeftModel.from_pretrained(BertModel.from_pretrained(base), str(adapter))
    merged = after.merge_and_unload().state_dict()
    return {name: (merged[name] - before[name]).numpy() for name in before}


def test_a_copy_lands_in_the_layer_that_was_kept(folder: Path, tmp_path: Path) -> None:
    migrate_file(folder / "adapter", folder / "source", folder / "target", tmp_path / "out", COPY)
    given = updates(folder / "source", folder / "adapter")
    found = updates(folder / "target", tmp_path / "out")
    moved = [name for name, update in found.items() if np.abs(update).max() > 1e-4]
    assert len(moved) == 6 * len(KEPT) + 1  # and the pooler
    for name in moved:
        np.testing.assert_allclose(found[name], given[from_layer(name)], atol=1e-6)


def test_a_head_changes_no_names_of_layers(folder: Path) -> None:
    plain, headed = (load_base_model(folder / name) for name in ("source", "with-head"))
    assert plain.spec.modules.keys() - headed.spec.modules.keys() == {"lm.pooler.dense"}
    assert not headed.spec.modules.keys() - plain.spec.modules.keys()
    path = "lm.encoder.layer.1.attention.self.query"
    np.testing.assert_array_equal(plain.weight(path), headed.weight(path))


def test_strangers_of_one_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Strangers, match="nothing in common") as refused:
        migrate_file(folder / "adapter", folder / "source", folder / "stranger", out, COPY)
    assert refused.value.code is Refusal.UNRELATED
    assert not out.exists()
