"""Targets pruned in width: rows and columns of the source; peft merges, torch slices."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import FAMILIES, LanguagePair, make_language_pair, merged, write_lora
from safetensors.numpy import load_file, save_file
from sliced_models import save_pruned, sliced

from prolora_jax.catalog.catalog import run_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.migration.base_similarity import similarity
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

WEIGHTS, PROJECTED = "adapter_model.safetensors", MigrationOptions()
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    """The source with an adapter of all its layers; its own target is not used."""
    folder = tmp_path_factory.mktemp("slices")
    layers = ("embed_tokens", "lm_head", *FAMILIES["mistral"].layers)
    return make_language_pair(folder, "mistral", depth=2, kept=(0, 1), layers=layers)


Prune = Callable[..., tuple[Path, Any]]


@pytest.fixture
def pruned(pair: LanguagePair, tmp_path: Path) -> Prune:
    """A target, pruned; `change` may do something to its weights first."""

    def make(
        change: Callable[[dict[str, torch.Tensor]], None] | None = None, *, stream: bool = True
    ) -> tuple[Path, Any]:
        weights = sliced(pair.source_net.state_dict(), stream=stream)
        if change is not None:
            change(weights)
        return tmp_path / "target", save_pruned(tmp_path / "target", weights, 2, stream=stream)

    return make


@pytest.mark.parametrize("stream", [True, False], ids=["all-widths", "mlp-alone"])
def test_slices_of_what_is_merged_are_what_is_merged_into_slices(
    pair: LanguagePair, pruned: Prune, stream: bool, tmp_path: Path
) -> None:
    target, net = pruned(stream=stream)
    out = tmp_path / "out"
    found = migrate_file(pair.adapter, pair.source, target, out, PROJECTED)
    assert not found.report.skipped
    assert not found.report.flags
    whole = merged(pair.source_net, pair.adapter).state_dict()
    wanted = sliced(whole, stream=stream)
    given, moved = net.state_dict(), merged(net, out).state_dict()
    for name, weight in wanted.items():
        torch.testing.assert_close(moved[name], weight, atol=5e-7, rtol=0)
        assert weight.ndim < 2 or not torch.equal(weight, given[name])
    flags = {m.path: m.flags for m in found.report.modules}
    of_mlp = {path for path in flags if ".mlp." in path}
    assert {path for path, said in flags.items() if said == ("sliced",)} == (
        {*flags} if stream else of_mlp
    )
    assert {m.action for m in found.report.modules} == {"copy"}
    assert verify_file(out).ok


def test_a_column_at_another_place_is_found(
    pair: LanguagePair, pruned: Prune, tmp_path: Path
) -> None:
    migrate_file(pair.adapter, pair.source, pruned()[0], tmp_path / "out", PROJECTED)
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    tensors[key][:, [2, 3]] = tensors[key][:, [3, 2]]
    save_file(tensors, tmp_path / "out" / WEIGHTS)
    checked = verify_file(tmp_path / "out")
    assert not checked.ok
    failed = [check.path for check in checked.modules if check.verdict == "failed"]
    assert failed == ["lm.model.layers.1.mlp.up_proj"]


def test_a_layer_that_was_trained_since_is_skipped_and_no_other(
    pair: LanguagePair, pruned: Prune, tmp_path: Path
) -> None:
    def train(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.self_attn.o_proj.weight"] *= 1.01

    found = migrate_file(pair.adapter, pair.source, pruned(train)[0], tmp_path / "out", PROJECTED)
    assert [(s.path, s.reason) for s in found.report.skipped] == [
        ("lm.model.layers.0.self_attn.o_proj", "shape-mismatch")
    ]
    assert verify_file(tmp_path / "out").ok


def _healed(weights: dict[str, torch.Tensor]) -> None:
    for weight in weights.values():
        weight += 0.05 * weight.std() * torch.randn(weight.shape)


def _alike(weights: dict[str, torch.Tensor]) -> None:
    weights["model.embed_tokens.weight"][:, 3] = weights["model.embed_tokens.weight"][:, 4]


def _most_tokens_trained(weights: dict[str, torch.Tensor]) -> None:
    embedding = weights["model.embed_tokens.weight"]
    # Every eighth token is as before: the channels can be found, and are too few tokens' own.
    embedding[[n for n in range(len(embedding)) if n % 8 != 3]] += 1


@pytest.mark.parametrize("change", [_healed, _alike, _most_tokens_trained])
def test_what_is_no_slice_is_refused(
    pair: LanguagePair, pruned: Prune, change: Any, tmp_path: Path
) -> None:
    target, _ = pruned(change)
    with pytest.raises(AdapterRefused, match="no module can move") as refused:
        migrate_file(pair.adapter, pair.source, target, tmp_path / "out", PROJECTED)
    assert refused.value.code is Refusal.NO_MATCHING_MODULE
    assert "shape-mismatch: 16" in str(refused.value)


def test_a_catalog_moves_slices_in_the_same_way(
    pair: LanguagePair, pruned: Prune, tmp_path: Path
) -> None:
    target, net = pruned()
    shutil.copytree(pair.adapter, tmp_path / "many/one")
    job = CatalogJob((tmp_path / "many",), tmp_path / "out", MigrationOptions(method="copy"))
    run_catalog(job, open_pair(pair.source, target))
    name = "model.layers.1.self_attn.q_proj.weight"
    wanted = sliced(merged(pair.source_net, pair.adapter).state_dict())[name]
    found = merged(net, tmp_path / "out/one").state_dict()[name]
    torch.testing.assert_close(found, wanted, atol=5e-7, rtol=0)
    assert verify_file(tmp_path / "out/one").ok
    shutil.rmtree(tmp_path / "many")
    without = verify_file(tmp_path / "out/one")
    assert without.absent
    assert not without.problems
    assert {check.verdict for check in without.modules} == {"not-compared"}


def test_verify_says_what_is_no_slice_any_more(
    pair: LanguagePair, pruned: Prune, tmp_path: Path
) -> None:
    target, _ = pruned()
    migrate_file(pair.adapter, pair.source, target, tmp_path / "out", PROJECTED)
    weights = load_file(target / "model.safetensors")
    weights["model.embed_tokens.weight"] += 1
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    checked = verify_file(tmp_path / "out")
    assert checked.verdict == "failed"
    said = [problem for module in checked.modules for problem in module.problems]
    assert any("no rows and columns of the source's here" in problem for problem in said)


def test_special_tokens_may_be_trained_since(tmp_path: Path) -> None:
    sizes = FAMILIES["mistral"].sizes
    wide = replace(FAMILIES["mistral"], sizes={**sizes, "vocab_size": 200})
    net = wide.build(2, seed=1)
    net.save_pretrained(tmp_path / "source")
    weights = sliced(net.state_dict())  # which peft puts its own into
    write_lora(net, tmp_path / "adapter", ("q_proj",))
    weights["model.embed_tokens.weight"][1:3] += 1
    save_pruned(tmp_path / "target", weights, 2, vocab_size=200)
    places = tmp_path / "adapter", tmp_path / "source", tmp_path / "target", tmp_path / "out"
    assert len(migrate_file(*places, PROJECTED).report.modules) == 2
    assert verify_file(tmp_path / "out").ok


@pytest.mark.parametrize("tokens", [[5], [3, 20, 29, 38]], ids=["one", "some"])
def test_a_token_that_was_renamed_since_leaves_the_layers_slices(
    pair: LanguagePair, pruned: Prune, tokens: list[int], tmp_path: Path
) -> None:
    def renamed(weights: dict[str, torch.Tensor]) -> None:
        weights["model.embed_tokens.weight"][tokens] += 1

    target, net = pruned(renamed)
    found = migrate_file(pair.adapter, pair.source, target, tmp_path / "out", PROJECTED)
    assert [s.path for s in found.report.skipped] == ["lm.model.embed_tokens"]
    wanted = sliced(merged(pair.source_net, pair.adapter).state_dict())
    moved = merged(net, tmp_path / "out").state_dict()
    for name in wanted.keys() - {"model.embed_tokens.weight"}:
        torch.testing.assert_close(moved[name], wanted[name], atol=5e-7, rtol=0)
    assert verify_file(tmp_path / "out").ok


def test_similarity_of_unlike_widths_compares_nothing(pair: LanguagePair, pruned: Prune) -> None:
    found = similarity(pair.source, pruned()[0], "all")
    assert not found.compared
