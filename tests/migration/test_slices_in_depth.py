"""Targets pruned in width and in depth at once: layers by their rows; peft merges, torch slices."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import FAMILIES, LanguagePair, make_language_pair, merged
from sliced_models import save_pruned, sliced

from prolora_jax.catalog.catalog import run_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file

PROJECTED, KEPT, DEPTH = MigrationOptions(), (0, 2, 4), 5
Weights = dict[str, torch.Tensor]
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    """A source of five layers with an adapter of all; its own target is not used."""
    folder = tmp_path_factory.mktemp("slices_in_depth")
    layers = ("embed_tokens", "lm_head", *FAMILIES["mistral"].layers)
    return make_language_pair(folder, "mistral", depth=DEPTH, kept=(0,), layers=layers)


Prune = Callable[..., tuple[Path, Any]]


@pytest.fixture
def pruned(pair: LanguagePair, tmp_path: Path) -> Prune:
    """A target with three of five layers, all of them narrower."""

    def make(
        change: Callable[[Weights], None] | None = None, *, stream: bool = True
    ) -> tuple[Path, Any]:
        weights, target = sliced(pair.source_net.state_dict(), KEPT, stream=stream), "target"
        if change is not None:
            change(weights)
        return tmp_path / target, save_pruned(tmp_path / target, weights, 3, stream=stream)

    return make


def noisy(share: float) -> Callable[[Weights], None]:
    """A change of each number by so much of its weight's size."""

    def change(weights: Weights) -> None:
        generator = torch.Generator().manual_seed(3)
        for weight in weights.values():
            noise = torch.randn(weight.shape, generator=generator)
            weight += share * weight.norm() / noise.norm() * noise

    return change


def name_in_layer(path: str, number: int) -> str:
    return f"lm.model.layers.{number}.{path.split('.', 4)[4]}"


@pytest.mark.parametrize("share", [0.0, 3e-4], ids=["exact", "noisy"])
def test_layers_are_found_by_their_rows_and_what_is_added_is_the_source_s(
    pair: LanguagePair, pruned: Prune, share: float, tmp_path: Path
) -> None:
    target, net = pruned(noisy(share))
    found = migrate_file(pair.adapter, pair.source, target, tmp_path / "out", PROJECTED)
    (alignment,) = found.report.alignments
    assert (alignment.slot, alignment.level) == ("lm.model.layers", "layers")
    assert (alignment.source_blocks, alignment.target_blocks) == (DEPTH, len(KEPT))
    assert alignment.pairs == tuple((source, j) for j, source in enumerate(KEPT))
    assert alignment.margin == 1.0
    assert {m.flags for m in found.report.modules} == {("sliced",)}
    left = {(s.source_path, s.reason) for s in found.report.skipped}
    roles = {m.path for m in found.report.modules if ".layers.0." in m.path}
    assert left == {(name_in_layer(p, n), "removed-in-target") for p in roles for n in (1, 3)}
    before, given = pair.source_net.state_dict(), net.state_dict()
    whole = merged(pair.source_net, pair.adapter).state_dict()
    added = {name: whole[name].double() - before[name].double() for name in whole}
    moved = merged(net, tmp_path / "out").state_dict()
    for name, wanted in sliced(added, KEPT).items():
        step = moved[name].double() - given[name].double()
        torch.testing.assert_close(step, wanted, atol=5e-7, rtol=0)
        assert wanted.ndim < 2 or wanted.any()
    assert verify_file(tmp_path / "out").ok


def test_layers_of_which_some_shapes_are_equal_are_found_by_these(
    pair: LanguagePair, pruned: Prune, tmp_path: Path
) -> None:
    target, net = pruned(stream=False)
    found = migrate_file(pair.adapter, pair.source, target, tmp_path / "out", PROJECTED)
    (alignment,) = found.report.alignments
    assert alignment.pairs == tuple((source, j) for j, source in enumerate(KEPT))
    flags = {m.path: m.flags for m in found.report.modules}
    assert {flags[p] for p in flags if ".mlp." in p} == {("sliced",)}
    assert {flags[p] for p in flags if ".self_attn." in p} == {("identical",)}
    wanted = sliced(merged(pair.source_net, pair.adapter).state_dict(), KEPT, stream=False)
    moved = merged(net, tmp_path / "out").state_dict()
    for name, weight in wanted.items():
        torch.testing.assert_close(moved[name], weight, atol=5e-7, rtol=0)
    assert verify_file(tmp_path / "out").ok


def test_with_noise_beyond_the_tolerance_nothing_moves(
    pair: LanguagePair, pruned: Prune, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRefused, match="no module can move") as refused:
        migrate_file(pair.adapter, pair.source, pruned(noisy(3e-3))[0], tmp_path / "out", PROJECTED)
    assert refused.value.code is Refusal.NO_MATCHING_MODULE


def _healed(weights: Weights) -> None:
    for name, weight in weights.items():
        if ".layers.1." in name:
            weight += 0.05 * weight.std() * torch.randn(weight.shape)


def test_a_layer_that_was_trained_since_has_no_source_and_the_others_theirs(
    pair: LanguagePair, pruned: Prune, tmp_path: Path
) -> None:
    found = migrate_file(pair.adapter, pair.source, pruned(_healed)[0], tmp_path / "out", PROJECTED)
    (alignment,) = found.report.alignments
    assert alignment.pairs == ((0, 0), (4, 2))
    reasons = {s.path: s.reason for s in found.report.skipped if s.path is not None}
    assert {path.split(".")[3] for path in reasons} == {"1"}
    assert len(reasons) == len(FAMILIES["mistral"].layers)
    assert verify_file(tmp_path / "out").ok


def _one_trained(weights: Weights) -> None:
    for role in ("self_attn.k_proj", "self_attn.v_proj"):
        weights[f"model.layers.1.{role}.weight"] *= 1.05


def test_a_layer_of_which_the_smallest_modules_were_trained_is_found_by_the_others(
    pair: LanguagePair, pruned: Prune, tmp_path: Path
) -> None:
    target, _ = pruned(_one_trained)
    found = migrate_file(pair.adapter, pair.source, target, tmp_path / "out", PROJECTED)
    (alignment,) = found.report.alignments
    assert alignment.pairs == tuple((source, j) for j, source in enumerate(KEPT))
    without = {f"lm.model.layers.1.self_attn.{name}_proj" for name in "kv"}
    moved = {m.path for m in found.report.modules if ".layers.1." in m.path}
    assert len(moved) == len(FAMILIES["mistral"].layers) - 2
    assert not moved & without
    assert verify_file(tmp_path / "out").ok


def test_of_two_layers_alike_nothing_tells_which_one_it_is(
    pair: LanguagePair, tmp_path: Path
) -> None:
    net = FAMILIES["mistral"].build(DEPTH, seed=0)
    weights = net.state_dict()
    for name in [name for name in weights if ".layers.3." in name]:
        weights[name].copy_(weights[name.replace(".layers.3.", ".layers.2.")])
    net.save_pretrained(tmp_path / "source")
    save_pruned(tmp_path / "target", sliced(weights, (0, 2)), 2)
    found = migrate_file(
        pair.adapter, tmp_path / "source", tmp_path / "target", tmp_path / "out", PROJECTED
    )
    (alignment,) = found.report.alignments
    assert alignment.margin == 0.0
    inside = [m.flags for m in found.report.modules if ".layers." in m.path]
    assert {*inside} == {("weak-match", "sliced")}
    assert verify_file(tmp_path / "out").ok


@pytest.mark.parametrize("kept", [(4, 2, 0), (0, 2, 2)], ids=["reversed", "twice"])
def test_layers_that_are_left_over_by_their_order_make_the_others_uncertain(
    pair: LanguagePair, kept: tuple[int, ...], tmp_path: Path
) -> None:
    save_pruned(tmp_path / "target", sliced(pair.source_net.state_dict(), kept), len(kept))
    places = pair.adapter, pair.source, tmp_path / "target", tmp_path / "out"
    report = migrate_file(*places, PROJECTED).report
    (alignment,) = report.alignments
    assert alignment.margin == 0.0
    assert len(alignment.pairs) == (1 if kept == (4, 2, 0) else 2)
    inside = [m.flags for m in report.modules if ".layers." in m.path]
    assert {*inside} == {("weak-match", "sliced")}
    moved = {int(m.path.split(".")[3]) for m in report.modules if ".layers." in m.path}
    assert moved == {j for _, j in alignment.pairs}
    assert verify_file(tmp_path / "out").ok


def test_a_stranger_of_another_width_and_depth_is_refused(
    pair: LanguagePair, tmp_path: Path
) -> None:
    weights = sliced(FAMILIES["mistral"].build(DEPTH, seed=9).state_dict(), KEPT)
    save_pruned(tmp_path / "target", weights, len(KEPT))
    with pytest.raises(AdapterRefused, match="no module can move"):
        migrate_file(pair.adapter, pair.source, tmp_path / "target", tmp_path / "out", PROJECTED)


def test_what_was_found_is_kept_and_no_weight_is_read_for_it_again(
    pair: LanguagePair, pruned: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, net = pruned()
    shutil.copytree(pair.adapter, tmp_path / "many/one")
    store = FolderStore(tmp_path / "store")
    first = open_pair(pair.source, target, store).matching()
    read: list[str] = []

    def counted(model: BaseModel, path: str) -> Any:
        read.append(path)
        return model._source(path).read()

    monkeypatch.setattr(BaseModel, "weight", counted)
    again = open_pair(pair.source, target, store)
    assert again.matching() == first
    assert not read
    job = CatalogJob((tmp_path / "many",), tmp_path / "out", MigrationOptions(method="copy"))
    run_catalog(job, again)
    name = "model.layers.1.self_attn.q_proj.weight"  # of layer 2 of the source
    whole = sliced(merged(pair.source_net, pair.adapter).state_dict(), KEPT)[name]
    torch.testing.assert_close(
        merged(net, tmp_path / "out/one").state_dict()[name], whole, atol=5e-7, rtol=0
    )
    assert verify_file(tmp_path / "out/one").ok
