"""Adapters of language models: transformers builds, peft adapts and merges, ours moves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import transformers
from language_models import FAMILIES, LanguagePair, make_language_pair, merged, write_lora

from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.files import Writing
from prolora_jax.migration.kinship import Strangers
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    return make_language_pair(tmp_path_factory.mktemp(request.param), request.param)


def updates(net: Any, adapter: Path) -> dict[str, np.ndarray]:
    """What an adapter adds to each weight of a net, by peft; only what is not nothing."""
    before, after = net.state_dict(), merged(net, adapter).state_dict()
    found = {key: (after[key] - before[key]).numpy() for key in before}
    return {key: delta for key, delta in found.items() if delta.any()}


# Of StarCoder's layers, which have GPT-2's names; peft sets it right.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target module is")
def test_a_copy_adds_to_the_target_what_peft_adds_to_the_source(
    pair: LanguagePair, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    migrate_file(pair.adapter, pair.source, pair.target, out, MigrationOptions(method="copy"))
    given, found = updates(pair.source_net, pair.adapter), updates(pair.target_net, out)
    weights = {key for key in pair.target_net.state_dict() if pair.source_name(key) in given}
    assert found.keys() == weights
    for name, delta in found.items():
        np.testing.assert_allclose(delta, given[pair.source_name(name)], atol=2e-7)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        pair.target
    )


# One stored `(out, in)`, one stored the other way round.
@pytest.mark.parametrize("pair", ["llama", "gpt2"], indirect=True)
@pytest.mark.parametrize("method", ["prolora", "prolora-full"])
def test_a_projection_is_that_of_the_dense_formulas(
    pair: LanguagePair, tmp_path: Path, method: Any
) -> None:
    out = tmp_path / "out"
    options = MigrationOptions(method=method, min_similarity=-1.0)
    migrate_file(pair.adapter, pair.source, pair.target, out, options)
    given, found = updates(pair.source_net, pair.adapter), updates(pair.target_net, out)
    assert found
    turned = isinstance(pair.source_net, transformers.GPT2LMHeadModel)
    for name, delta in found.items():
        origin = pair.source_name(name)
        weights = (pair.source_net.state_dict()[origin], pair.target_net.state_dict()[name])
        source, target = (w.double().numpy() for w in weights)
        update = given[origin].astype(np.float64)
        if turned:
            source, target, update, delta = source.T, target.T, update.T, delta.T
        spectra = [np.linalg.svd(weight, compute_uv=False) for weight in (source, target)]
        ranks = reference.pair_ranks(spectra[0], spectra[1], ("energy", 0.9))
        bases = reference.pair_of_weights(source, target, *ranks)
        expected = reference.project(method, bases, update)
        error = np.linalg.norm(delta - expected) / np.linalg.norm(update)
        assert error < 1e-5, (name, error)
    assert verify_file(out).ok


@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_no_other_format_is_written_for_a_language_model(
    pair: LanguagePair, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRefused, match="expected peft") as refused:
        migrate_file(
            pair.adapter,
            pair.source,
            pair.target,
            tmp_path / "out.safetensors",
            MigrationOptions(method="copy"),
            Writing(format="kohya"),
        )
    assert refused.value.code is Refusal.UNMATCHED_MODULES
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("pair", ["gpt2", "llama"], indirect=True)
def test_a_model_saved_without_its_head_has_the_same_layers(
    pair: LanguagePair, tmp_path: Path
) -> None:
    whole = load_base_model(pair.source)
    pair.source_net.base_model.save_pretrained(tmp_path / "bare")
    bare = load_base_model(tmp_path / "bare")
    layers = {path for path in whole.spec.modules if ".0." in path}
    assert layers
    for path in layers:
        np.testing.assert_array_equal(bare.weight(path), whole.weight(path))


@pytest.mark.parametrize("pair", ["mistral"], indirect=True)
@pytest.mark.parametrize("method", ["copy", "prolora-full"])
def test_equal_shapes_are_not_kinship(pair: LanguagePair, tmp_path: Path, method: Any) -> None:
    stranger, out = tmp_path / "stranger", tmp_path / "out"
    FAMILIES["llama"].build(4, seed=9).save_pretrained(stranger)
    with pytest.raises(Strangers, match="nothing in common") as refused:
        migrate_file(pair.adapter, pair.source, stranger, out, MigrationOptions(method=method))
    assert refused.value.code is Refusal.UNRELATED
    assert not out.exists()
    # So it is of the pair, whatever an adapter has: a head stands in no layer.
    write_lora(FAMILIES["mistral"].build(4, seed=0), tmp_path / "head", ("lm_head",))
    options = MigrationOptions(method=method)
    with pytest.raises(Strangers):
        migrate_file(tmp_path / "head", pair.source, stranger, out, options)
    forced = MigrationOptions(method=method, min_similarity=-1.0)
    assert migrate_file(pair.adapter, pair.source, stranger, out, forced).report.modules


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # what is asked here
def test_the_head_is_a_layer_whether_it_is_tied_or_not(tmp_path: Path) -> None:
    pair = make_language_pair(tmp_path, "llama", target_modules=["q_proj", "lm_head"])
    assert pair.source_net.config.tie_word_embeddings
    out = tmp_path / "out"
    migrate_file(pair.adapter, pair.source, pair.target, out, MigrationOptions(method="copy"))
    given, found = load_adapter(pair.adapter), load_adapter(out)
    heads = [next(m for m in a.modules if m.path == "lm.lm_head") for a in (given, found)]
    np.testing.assert_allclose(
        heads[1].scale * heads[1].up @ heads[1].down,
        heads[0].scale * heads[0].up @ heads[0].down,
        atol=1e-7,
    )
