"""Rows of embeddings and heads by token string; `tokenizers` writes the files, peft merges."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import (
    FAMILIES,
    LanguagePair,
    make_language_pair,
    merged,
    of_newer_transformers,
    write_lora,
)
from peft import LoHaConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models

from prolora_jax.catalog.catalog import run_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.errors import AdapterRefused, BaseModelError
from prolora_jax.matching.vocabularies import vocabulary_of_json
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import MigratedFile, migrate_file
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.companions import Fate, NoRows
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

WEIGHTS, EMBEDDING, HEAD = "adapter_model.safetensors", "model.embed_tokens", "lm_head"
COPY, SIZE, SMALLER = MigrationOptions(method="copy"), 40, 37
TOKENS = [f"token{number}" for number in range(SIZE)]
SHUFFLED = [TOKENS[number] for number in np.random.default_rng(5).permutation(SIZE)]
NEGATIVE = b'{"model": {"vocab": {"a": 0, "b": -1}}}'
LACKING = ["new", *SHUFFLED[1:]]
pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`"
)


def save_tokenizer(folder: Path, tokens: list[str]) -> None:
    numbers = {token: number for number, token in enumerate(tokens)}
    Tokenizer(models.WordLevel(numbers, unk_token=tokens[0])).save(str(folder / "tokenizer.json"))


def reordered(pair: LanguagePair, folder: Path, tokens: list[str]) -> Any:
    """The target with rows in the order of these tokens, with its tokenizer; returns the net."""
    net = FAMILIES["mistral"].build(2, seed=1)
    net.resize_token_embeddings(len(tokens))
    state = dict(pair.target_net.state_dict())
    for name in (EMBEDDING, HEAD):
        weight = state[f"{name}.weight"]
        rows = [TOKENS.index(token) if token in TOKENS else 0 for token in tokens]
        state[f"{name}.weight"] = weight[rows].clone()
    net.load_state_dict(state)
    net.save_pretrained(folder)
    save_tokenizer(folder, tokens)
    return net


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    """Mistral with its own head, both adapted; the source's tokenizer beside it."""
    folder = tmp_path_factory.mktemp("tokens")
    targets = ["embed_tokens", "lm_head", "q_proj"]
    made = make_language_pair(folder, "mistral", depth=2, kept=(0, 1), target_modules=targets)
    save_tokenizer(made.source, TOKENS)
    return made


@pytest.fixture(scope="module")
def with_rows(pair: LanguagePair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with the whole rows of three tokens."""
    folder, net = tmp_path_factory.mktemp("rows"), FAMILIES["mistral"].build(2, seed=0)
    fields = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7, 39]}
    write_lora(net, folder, (), **fields)
    tensors = load_file(folder / WEIGHTS)
    (key,) = (key for key in tensors if "trainable_tokens" in key)
    steps = np.arange(1, 4, dtype=np.float32)[:, None]
    save_file(tensors | {key: tensors[key] + steps}, folder / WEIGHTS)
    return folder


def added(net: Any, adapter: Path, name: str) -> np.ndarray:
    key = f"{name}.weight"
    return (merged(net, adapter).state_dict()[key] - net.state_dict()[key]).numpy()


def expected(given: np.ndarray, tokens: list[str]) -> np.ndarray:
    """Row by row what the same token had; nothing for a token that the source has not."""
    rows = [given[TOKENS.index(token)] if token in TOKENS else 0 * given[0] for token in tokens]
    return np.stack(rows)


@pytest.mark.parametrize("method", ["copy", "prolora"])
@pytest.mark.parametrize(
    "tokens",
    [SHUFFLED, LACKING, SHUFFLED[:SMALLER], [*TOKENS, "one", "more"]],
    ids=["shuffled", "lacking", "smaller", "grown"],
)
def test_each_token_s_row_goes_to_that_token(
    pair: LanguagePair, tokens: list[str], method: Any, tmp_path: Path
) -> None:
    net = reordered(pair, tmp_path / "target", tokens)
    options = MigrationOptions(method=method)
    found = migrate_file(pair.adapter, pair.source, tmp_path / "target", tmp_path / "out", options)
    for name in (EMBEDDING, HEAD):
        given = added(pair.source_net, pair.adapter, name)
        wanted = expected(given, tokens)
        assert wanted.any()
        np.testing.assert_allclose(added(net, tmp_path / "out", name), wanted, atol=3e-7)
    told = {m.path: m for m in found.report.modules}
    assert told["lm.lm_head"].flags == told["lm.model.embed_tokens"].flags == ("by-token",)
    missing = [token for token in TOKENS if token not in tokens]
    shown = ", ".join(map(repr, missing[:3]))
    flag = (f"tokens-missing: {len(missing)}, first {shown}",) if missing else ()
    assert found.report.flags == flag
    assert verify_file(tmp_path / "out").ok


def test_a_norm_is_restored_without_that_of_tokens_that_stay_behind(
    pair: LanguagePair, tmp_path: Path
) -> None:
    tokens = SHUFFLED[:SMALLER]
    net = reordered(pair, tmp_path / "target", tokens)
    options = MigrationOptions(method="copy", rank="2", rescale="norm")
    migrate_file(pair.adapter, pair.source, tmp_path / "target", tmp_path / "out", options)
    wanted = expected(added(pair.source_net, pair.adapter, HEAD), tokens)
    u, s, v = np.linalg.svd(wanted.astype(np.float64), full_matrices=False)
    cut = (u[:, :2] * s[:2]) @ v[:2] * np.linalg.norm(s) / np.linalg.norm(s[:2])
    np.testing.assert_allclose(added(net, tmp_path / "out", HEAD), cut, atol=2e-6)
    assert verify_file(tmp_path / "out").ok


def moved(pair: LanguagePair, target: Path, out: Path) -> MigratedFile:
    return migrate_file(pair.adapter, pair.source, target, out, COPY)


def test_equal_vocabularies_keep_rows_in_their_places(pair: LanguagePair, tmp_path: Path) -> None:
    reordered(pair, tmp_path / "target", TOKENS)
    found = moved(pair, tmp_path / "target", tmp_path / "out")
    given, written = (load_file(folder / WEIGHTS) for folder in (pair.adapter, tmp_path / "out"))
    (key,) = (key for key in given if "lora_embedding_A" in key)
    np.testing.assert_allclose(written[key], 1.5 * given[key], rtol=1e-6)  # alpha / r
    assert not found.report.flags
    assert not any(m.flags for m in found.report.modules)


def test_without_a_tokenizer_numbers_are_taken_as_equal_and_that_is_said(
    pair: LanguagePair, tmp_path: Path
) -> None:
    net = reordered(pair, tmp_path / "target", SHUFFLED)
    (tmp_path / "target/tokenizer.json").unlink()
    found = moved(pair, tmp_path / "target", tmp_path / "out")
    assert found.report.flags == ("token-numbers-assumed",)
    given = added(pair.source_net, pair.adapter, EMBEDDING)
    np.testing.assert_allclose(added(net, tmp_path / "out", EMBEDDING), given, atol=3e-7)
    assert verify_file(tmp_path / "out").ok


def test_equal_weights_have_equal_tokens(pair: LanguagePair, tmp_path: Path) -> None:
    shutil.copytree(pair.source, tmp_path / "target")
    (tmp_path / "target/tokenizer.json").unlink()
    assert not moved(pair, tmp_path / "target", tmp_path / "out").report.flags


def test_a_head_s_bias_stays_behind_and_its_magnitudes_are_refused(
    pair: LanguagePair, tmp_path: Path
) -> None:
    reordered(pair, tmp_path / "target", SHUFFLED)
    for name, dora in (("bias", False), ("dora", True)):
        net = FAMILIES["mistral"].build(2, seed=0)
        write_lora(net, tmp_path / name, ("lm_head", "q_proj"), use_dora=dora)
    tensors = load_file(tmp_path / "bias" / WEIGHTS)
    tensors["base_model.model.lm_head.lora_B.bias"] = np.ones(SIZE, np.float32)
    save_file(tensors, tmp_path / "bias" / WEIGHTS)
    target, keep = tmp_path / "target", MigrationOptions(method="copy", dora="keep")
    found = migrate_file(tmp_path / "bias", pair.source, target, tmp_path / "out", COPY)
    fates = {c.source_path: c.fate for c in found.report.companions}
    assert fates["lm.lm_head"] is Fate.OTHER_TOKENS
    assert verify_file(tmp_path / "out").ok
    with pytest.raises(AdapterRefused, match="found DoRA on a layer whose rows"):
        migrate_file(tmp_path / "dora", pair.source, target, tmp_path / "two", keep)


def test_loha_on_rows_that_move_becomes_plain_lora_or_is_refused(
    pair: LanguagePair, tmp_path: Path
) -> None:
    net = reordered(pair, tmp_path / "target", SHUFFLED)
    config = LoHaConfig(r=2, alpha=3, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    with of_newer_transformers():
        adapted: Any = get_peft_model(FAMILIES["mistral"].build(2, seed=0), config)
    torch.manual_seed(4)
    for name, parameter in adapted.named_parameters():
        if "hada_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(tmp_path / "loha"))
    places = tmp_path / "loha", pair.source, tmp_path / "target", tmp_path / "out"
    with pytest.raises(AdapterRefused, match="lm_head: found LoHa .* move it with --format lora"):
        migrate_file(*places, COPY)
    exact = MigrationOptions(method="copy", factor_rank="exact")
    found = migrate_file(*places, exact, Writing(format="lora"))
    assert found.report.flags == ("made-plain-lora: loha",)
    given = added(pair.source_net, tmp_path / "loha", HEAD)
    wanted = expected(given, SHUFFLED)
    np.testing.assert_allclose(added(net, tmp_path / "out", HEAD), wanted, atol=1e-6)
    assert verify_file(tmp_path / "out").ok


def _swap(folder: Path) -> None:
    """Give two tokens each other's row of what is added to the embedding."""
    tensors = load_file(folder / WEIGHTS)
    (key,) = (key for key in tensors if "lora_embedding_A" in key)
    tensors[key][:, [4, 9]] = tensors[key][:, [9, 4]]
    save_file(tensors, folder / WEIGHTS)


def test_a_row_at_another_token_is_found(pair: LanguagePair, tmp_path: Path) -> None:
    reordered(pair, tmp_path / "target", SHUFFLED)
    moved(pair, tmp_path / "target", tmp_path / "out")
    _swap(tmp_path / "out")
    checked = verify_file(tmp_path / "out")
    failed = [check.path for check in checked.modules if check.verdict == "failed"]
    assert not checked.ok
    assert failed == ["lm.model.embed_tokens"]


def test_a_tokenizer_that_changed_since_is_found(pair: LanguagePair, tmp_path: Path) -> None:
    reordered(pair, tmp_path / "target", SHUFFLED)
    moved(pair, tmp_path / "target", tmp_path / "out")
    save_tokenizer(tmp_path / "target", TOKENS)
    assert not verify_file(tmp_path / "out").ok


def test_whole_rows_go_to_their_tokens(pair: LanguagePair, with_rows: Path, tmp_path: Path) -> None:
    net = reordered(pair, tmp_path / "target", SHUFFLED)
    migrate_file(with_rows, pair.source, tmp_path / "target", tmp_path / "out", COPY)
    given = added(pair.source_net, with_rows, EMBEDDING)
    assert {*np.nonzero(given.any(axis=1))[0]} == {3, 7, 39}
    found = added(net, tmp_path / "out", EMBEDDING)
    np.testing.assert_allclose(found, expected(given, SHUFFLED), atol=5e-7)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    names = [TOKENS[number] for number in (3, 7, 39)]
    assert config["trainable_token_indices"] == {
        "embed_tokens": [SHUFFLED.index(name) for name in names]
    }
    assert verify_file(tmp_path / "out").ok


def test_a_whole_row_of_a_token_that_is_not_there_stays_behind(
    pair: LanguagePair, with_rows: Path, tmp_path: Path
) -> None:
    tokens = ["new" if token == TOKENS[7] else token for token in SHUFFLED]
    net = reordered(pair, tmp_path / "target", tokens)
    places = with_rows, pair.source, tmp_path / "target", tmp_path / "out"
    with pytest.raises(NoRows, match="allow-partial"):
        migrate_file(*places, COPY)
    found = migrate_file(*places, MigrationOptions(method="copy", allow_partial=True))
    assert [c.fate for c in found.report.companions] == [Fate.SOME_ROWS]
    given = added(pair.source_net, with_rows, EMBEDDING)
    wanted = expected(given, tokens)
    np.testing.assert_allclose(added(net, tmp_path / "out", EMBEDDING), wanted, atol=5e-7)
    assert verify_file(tmp_path / "out").ok


def test_a_catalog_moves_rows_in_the_same_way(pair: LanguagePair, tmp_path: Path) -> None:
    net = reordered(pair, tmp_path / "target", SHUFFLED)
    shutil.copytree(pair.adapter, tmp_path / "many/one")
    shutil.copytree(pair.adapter, tmp_path / "many/two")
    (tmp_path / "many/two" / WEIGHTS).unlink()
    tensors = {k: 2 * v for k, v in load_file(pair.adapter / WEIGHTS).items()}
    save_file(tensors, tmp_path / "many/two" / WEIGHTS)
    job = CatalogJob((tmp_path / "many",), tmp_path / "out", COPY)
    run_catalog(job, open_pair(pair.source, tmp_path / "target"))
    for name in ("one", "two"):
        given = added(pair.source_net, tmp_path / "many" / name, HEAD)
        found = added(net, tmp_path / "out" / name, HEAD)
        np.testing.assert_allclose(found, expected(given, SHUFFLED), atol=1e-6)
        assert verify_file(tmp_path / "out" / name).ok


def _models() -> dict[str, Callable[[], Any]]:
    numbers = {"a": 0, "b": 1, "ab": 2, "[UNK]": 3}
    return {
        "bpe": lambda: models.BPE(numbers, [("a", "b")]),
        "wordpiece": lambda: models.WordPiece(numbers, unk_token="[UNK]"),
        "unigram": lambda: models.Unigram([("a", -1.0), ("b", -2), ("ab", -0.5)], 0),
    }


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_every_kind_of_vocabulary_is_read_as_its_library_reads_it(
    kind: str, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(_models()[kind]())
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = vocabulary_of_json((tmp_path / "tokenizer.json").read_bytes(), "model").numbers
    assert found == tokenizer.get_vocab(with_added_tokens=True)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"model": {}}', b'{"model": {"vocab": 3}}', NEGATIVE]
)
def test_a_damaged_tokenizer_is_refused(pair: LanguagePair, content: bytes, tmp_path: Path) -> None:
    reordered(pair, tmp_path / "target", TOKENS)
    (tmp_path / "target/tokenizer.json").write_bytes(content)
    with pytest.raises(BaseModelError, match="found no vocabulary .*; expected the numbers"):
        moved(pair, tmp_path / "target", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tokens", [TOKENS, [*TOKENS, "more"]], ids=["equal", "grown"])
def test_an_adapter_without_rows_of_tokens_needs_no_tokenizer(
    pair: LanguagePair, tokens: list[str], tmp_path: Path
) -> None:
    write_lora(FAMILIES["mistral"].build(2, seed=0), tmp_path / "plain", ("q_proj",))
    net = reordered(pair, tmp_path / "target", tokens)
    (tmp_path / "target/tokenizer.json").write_bytes(b"")
    found = migrate_file(
        tmp_path / "plain", pair.source, tmp_path / "target", tmp_path / "out", COPY
    )
    assert not found.report.flags
    name = "model.layers.0.self_attn.q_proj"
    assert added(net, tmp_path / "out", name).any()
    assert verify_file(tmp_path / "out").ok
