"""Embeddings, heads, whole rows and whole layers of language models; peft writes and merges."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import FAMILIES, LanguagePair, make_language_pair, merged, write_lora
from safetensors.numpy import load_file, save_file

from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.whole_files import convert_file
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.companions import Fate, NoRows, WholeLayers
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

COPY = MigrationOptions(method="copy")
PARTIAL = MigrationOptions(method="copy", allow_partial=True)
WEIGHTS = "adapter_model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    """Mistral, whose head is its own; the file has a pair for the embedding, and copies."""
    targets = ["embed_tokens", "lm_head", "q_proj"]
    folder = tmp_path_factory.mktemp("embeddings")
    return make_language_pair(folder, "mistral", copies=True, target_modules=targets)


@pytest.fixture
def changed(pair: LanguagePair, tmp_path: Path) -> Callable[[str], Path]:
    """The adapter with another tensor under a key."""

    def make(key: str) -> Path:
        tensors = load_file(pair.adapter / WEIGHTS)
        assert key in tensors
        tensors[key] = tensors[key] + 0.5
        made = tmp_path / "changed"
        made.mkdir()
        save_file(tensors, made / WEIGHTS)
        config = (pair.adapter / "adapter_config.json").read_text()
        (made / "adapter_config.json").write_text(config)
        return made

    return make


def added(net: Any, adapter: Path, name: str) -> np.ndarray:
    after = merged(net, adapter).state_dict()[name]
    return (after - net.state_dict()[name]).numpy()


def test_an_embedding_s_pair_is_copied_whatever_the_method(
    pair: LanguagePair, tmp_path: Path
) -> None:
    keys = load_file(pair.adapter / WEIGHTS).keys()
    copies = [key for key in keys if key.endswith("base_layer.weight")]
    assert len(copies) == 2  # of the embedding and of the head
    found = migrate_file(
        pair.adapter, pair.source, pair.target, tmp_path / "out", MigrationOptions()
    )
    told = [c for c in found.report.companions if c.key in copies]
    assert [c.fate for c in told] == [Fate.NO_EFFECT] * 2
    assert not [key for key in load_file(tmp_path / "out" / WEIGHTS) if "base_layer" in key]
    given, moved = (
        added(net, folder, EMBEDDING)
        for net, folder in (
            (pair.source_net, pair.adapter),
            (pair.target_net, tmp_path / "out"),
        )
    )
    assert given.any()
    np.testing.assert_allclose(moved, given, atol=2e-7)
    assert verify_file(tmp_path / "out").ok


def test_the_embedding_s_factors_are_the_input_s_bytes(pair: LanguagePair, tmp_path: Path) -> None:
    convert_file(pair.adapter, "peft", tmp_path / "out", pair.source)
    given, found = (load_file(folder / WEIGHTS) for folder in (pair.adapter, tmp_path / "out"))
    kept = {key for key in given if "base_layer" not in key}
    assert found.keys() == kept
    for key in kept:
        np.testing.assert_array_equal(found[key], given[key])


def test_a_copy_that_is_none_is_a_whole_layer(
    pair: LanguagePair, changed: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = changed("base_model.model.lm_head.base_layer.weight")
    with pytest.raises(WholeLayers, match=r"lm_head\.base_layer\.weight"):
        migrate_file(adapter, pair.source, pair.target, tmp_path / "out", COPY)
    found = migrate_file(adapter, pair.source, pair.target, tmp_path / "out", PARTIAL)
    assert [c.fate for c in found.report.companions] == [Fate.WHOLE_LAYER, Fate.NO_EFFECT]
    assert found.report.flags[0].startswith("partial: 1 ")


def test_a_tied_embedding_and_its_head_keep_their_pairs(tmp_path: Path) -> None:
    fields = {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}
    pair = make_language_pair(tmp_path, "llama", copies=True, **fields)
    assert pair.source_net.config.tie_word_embeddings
    migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", COPY)
    given, found = (load_file(folder / WEIGHTS) for folder in (pair.adapter, tmp_path / "out"))
    outside = {key for key in given if ".layers." not in key and "base_layer" not in key}
    assert outside == {key for key in found if ".layers." not in key}
    assert len(outside) == 4  # of the embedding and of the head
    for down, up in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
        for name in {key.rpartition(f".{down}")[0] for key in outside if f".{down}" in key}:
            keys = [next(k for k in outside if k.startswith(f"{name}.{f}")) for f in (up, down)]
            updates = [scale * a[keys[0]] @ a[keys[1]] for a, scale in ((given, 1.5), (found, 1))]
            np.testing.assert_allclose(updates[1], updates[0], atol=1e-6)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["ensure_weight_tying"]


# Of transformers' models one has another name for it, one a weight that is stored in another way.
@pytest.mark.parametrize(("family", "name"), [("gpt-neox", "embed_in"), ("gpt2", "wte")])
def test_embeddings_have_other_names_elsewhere(family: str, name: str, tmp_path: Path) -> None:
    targets = [name, FAMILIES[family].layers[0]]
    pair = make_language_pair(tmp_path, family, target_modules=targets)
    migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", COPY)
    key = next(key for key in pair.target_net.state_dict() if f".{name}." in key)
    given = added(pair.source_net, pair.adapter, key)
    assert given.any()
    np.testing.assert_allclose(added(pair.target_net, tmp_path / "out", key), given, atol=2e-7)
    layer = next(k for k in pair.target_net.state_dict() if f"{targets[1]}.weight" in k)
    np.testing.assert_allclose(
        added(pair.target_net, tmp_path / "out", layer),
        added(pair.source_net, pair.adapter, pair.source_name(layer)),
        atol=2e-7,
    )


ROWS = (3, 7, 39)


@pytest.fixture(scope="module")
def with_rows(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    folder = tmp_path_factory.mktemp("rows")
    fields = {"target_modules": ["q_proj"], "trainable_token_indices": list(ROWS)}
    pair = make_language_pair(folder, "mistral", **fields)
    tensors = load_file(pair.adapter / WEIGHTS)
    (key,) = (key for key in tensors if "trainable_tokens" in key)
    tensors[key] = tensors[key] + np.float32(0.25)  # peft begins with the base model's rows
    save_file(tensors, pair.adapter / WEIGHTS)
    return pair


def test_whole_rows_change_the_target_s_by_what_they_differ_from_the_source_s(
    with_rows: LanguagePair, tmp_path: Path
) -> None:
    pair = with_rows
    migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", COPY)
    given = added(pair.source_net, pair.adapter, EMBEDDING)
    assert {*np.nonzero(given.any(axis=1))[0]} == {*ROWS}
    found = added(pair.target_net, tmp_path / "out", EMBEDDING)
    np.testing.assert_allclose(found, given, atol=2e-7)
    assert verify_file(tmp_path / "out").ok


def test_whole_rows_of_a_tied_embedding_are_the_head_s_too(tmp_path: Path) -> None:
    fields = {"target_modules": ["q_proj"], "trainable_token_indices": list(ROWS)}
    pair = make_language_pair(tmp_path, "llama", depth=1, kept=(0,), **fields)
    tensors = load_file(pair.adapter / WEIGHTS)
    (key,) = (key for key in tensors if "trainable_tokens" in key)
    save_file(tensors | {key: tensors[key] + np.float32(0.25)}, pair.adapter / WEIGHTS)
    migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", COPY)
    tokens = torch.tensor([[3, 5, 7, 39]])
    with torch.no_grad():
        nets = (pair.source_net, pair.adapter), (pair.target_net, tmp_path / "out")
        for net, folder in nets:
            rows = merged(net, folder).get_input_embeddings()(tokens)
            before = net.get_input_embeddings()(tokens)
            wanted = torch.tensor([0.25, 0.0, 0.25, 0.25])[None, :, None].expand_as(rows)
            torch.testing.assert_close(rows - before, wanted, atol=2e-7, rtol=0)


def test_rows_on_the_same_embedding_keep_their_bytes(
    with_rows: LanguagePair, tmp_path: Path
) -> None:
    pair = with_rows
    migrate_file(pair.adapter, pair.source, pair.source, tmp_path / "out", COPY)
    given, found = (load_file(folder / WEIGHTS) for folder in (pair.adapter, tmp_path / "out"))
    (key,) = (key for key in given if "trainable_tokens" in key)
    np.testing.assert_array_equal(found[key], given[key])


def test_rows_that_a_smaller_vocabulary_has_not_stay_behind_where_that_is_allowed(
    with_rows: LanguagePair, tmp_path: Path
) -> None:
    pair, smaller = with_rows, tmp_path / "smaller"
    net = FAMILIES["mistral"].build(3, seed=1)
    net.load_state_dict(pair.target_net.state_dict())
    net.resize_token_embeddings(36)
    net.save_pretrained(smaller)
    with pytest.raises(NoRows, match="allow-partial") as refused:
        migrate_file(pair.adapter, pair.source, smaller, tmp_path / "out", COPY)
    assert refused.value.code is Refusal.UNSUPPORTED_ALGORITHM
    found = migrate_file(pair.adapter, pair.source, smaller, tmp_path / "out", PARTIAL)
    (told,) = found.report.companions
    assert told.fate is Fate.SOME_ROWS
    moved = merged(net, tmp_path / "out").state_dict()[EMBEDDING] - net.state_dict()[EMBEDDING]
    given = added(pair.source_net, pair.adapter, EMBEDDING)[:36]
    np.testing.assert_allclose(moved.numpy(), given, atol=2e-7)


def test_rows_without_their_tokens_are_refused(with_rows: LanguagePair, tmp_path: Path) -> None:
    pair, made = with_rows, tmp_path / "made"
    made.mkdir()
    config = json.loads((pair.adapter / "adapter_config.json").read_text())
    config["trainable_token_indices"] = [3, 7]
    (made / "adapter_config.json").write_text(json.dumps(config))
    (made / WEIGHTS).write_bytes((pair.adapter / WEIGHTS).read_bytes())
    with pytest.raises(AdapterRefused, match="3 rows of an embedding, and 2 tokens"):
        migrate_file(made, pair.source, pair.target, tmp_path / "out", COPY, Writing())


@pytest.mark.parametrize(("to", "out"), [("mlx", "out"), ("peft", "out.safetensors")])
def test_rows_have_a_place_in_a_folder_of_peft_s_alone(
    with_rows: LanguagePair, to: str, out: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRefused, match="of which tokens they are"):
        convert_file(with_rows.adapter, to, tmp_path / out, with_rows.source)
    assert not (tmp_path / out).exists()


def test_an_embedding_of_another_vocabulary_gets_nothing(
    pair: LanguagePair, tmp_path: Path
) -> None:
    net = FAMILIES["mistral"].build(3, seed=1)
    net.load_state_dict(pair.target_net.state_dict())
    net.resize_token_embeddings(48)
    net.save_pretrained(tmp_path / "larger")
    found = migrate_file(pair.adapter, pair.source, tmp_path / "larger", tmp_path / "out", COPY)
    skipped = {s.source_path: s.reason for s in found.report.skipped if s.source_path}
    assert skipped["lm.model.embed_tokens"] == skipped["lm.lm_head"] == "shape-mismatch"


def test_logits_are_those_of_peft_s_own_merge(pair: LanguagePair, tmp_path: Path) -> None:
    migrate_file(pair.adapter, pair.source, pair.source, tmp_path / "out", COPY)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        given, found = (
            merged(pair.source_net, folder)(tokens).logits
            for folder in (pair.adapter, tmp_path / "out")
        )
    torch.testing.assert_close(found, given, atol=1e-5, rtol=0)


def test_a_configuration_with_an_unknown_field_is_refused_by_its_name(
    pair: LanguagePair, tmp_path: Path
) -> None:
    net = FAMILIES["mistral"].build(4, seed=0)
    write_lora(net, tmp_path / "given", ("q_proj",))
    place = tmp_path / "given/adapter_config.json"
    config = json.loads(place.read_text())
    place.write_text(json.dumps(config | {"use_twisted": True}))
    with pytest.raises(AdapterRefused, match="use_twisted: True"):
        migrate_file(tmp_path / "given", pair.source, pair.target, tmp_path / "out", COPY)
    place.write_text(json.dumps(config | {"use_twisted": {}, "also_nothing": None}))
    assert migrate_file(tmp_path / "given", pair.source, pair.target, tmp_path / "out", COPY)
