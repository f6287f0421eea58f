"""Whole layers that peft saves (`modules_to_save`): peft writes them, loads them and merges."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from language_models import (
    FAMILIES,
    SIZES,
    LanguagePair,
    make_language_pair,
    merged,
    randomised,
    write_lora,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from prolora_jax.adapters.adapter import Part
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.catalog.outlook import predicted_size
from prolora_jax.catalog.scan import Scanner
from prolora_jax.errors import AdapterRefused
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.adapters.inputs import Input
from prolora_jax.io.adapters.whole_files import convert_file
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.matching.tokens import TokenMap
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob
from prolora_jax.migration.many import read_job
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.companions import Fate, NoSavedLayer, PlannedCompanion, plan_companions
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.refine.job.refined import ToRefine
from prolora_jax.refine.lm.opening import require_kernels
from prolora_jax.verification.file import verify_file

COPY = MigrationOptions(method="copy")
PARTIAL = MigrationOptions(method="copy", allow_partial=True)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
UP, HEAD, EMBEDDING = "model.layers.{}.mlp.up_proj.weight", "lm_head.weight", "embed_tokens.weight"
OTHERS: Any = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
NAMES = ["lm_head", "layers.2.mlp.up_proj", "embed_tokens"]
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")


def trained(folder: Path, generator: np.random.Generator) -> Path:
    """The adapter with other numbers in its whole layers, the embedding's in half the bytes."""
    tensors = load_file(folder / WEIGHTS)
    for key, array in tensors.items():
        if "lora_" not in key:
            array = array + 0.1 * generator.standard_normal(array.shape).astype(np.float32)
            tensors[key] = array.astype(np.float16) if key.endswith(EMBEDDING) else array
    save_file(tensors, folder / WEIGHTS)
    return folder


def whole(folder: Path) -> dict[str, np.ndarray]:
    found = load_file(folder / WEIGHTS).items()
    return {k.removeprefix("base_model.model."): a for k, a in found if "lora_" not in k}


def numbers(net: Any) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in net.state_dict().items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    """Mistral with three layers, and a target without the one between."""
    fields: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": NAMES}
    folder = tmp_path_factory.mktemp("saved")
    pair = make_language_pair(folder, "mistral", depth=3, kept=(0, 2), **fields)
    trained(pair.adapter, np.random.default_rng(5))
    return pair


@pytest.fixture(scope="module")
def moved(pair: LanguagePair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("moved") / "out"
    migrate_file(pair.adapter, pair.source, pair.target, out, COPY)
    return out


def test_the_target_s_layer_changes_by_what_the_source_s_has(
    pair: LanguagePair, moved: Path
) -> None:
    source, target, given, found = (
        numbers(pair.source_net),
        numbers(pair.target_net),
        whole(pair.adapter),
        whole(moved),
    )
    names = {HEAD: HEAD, UP.format(1): UP.format(2), f"model.{EMBEDDING}": f"model.{EMBEDDING}"}
    assert found.keys() == names.keys()
    net = merged(pair.target_net, moved)
    loaded, state = numbers(net), pair.target_net.state_dict()
    for name, own in names.items():
        wanted = target[name] + (given[own].astype(np.float64) - source[own])
        assert found[name].dtype == given[own].dtype
        close = 1e-6 if found[name].dtype == np.float32 else 1e-3
        np.testing.assert_allclose(loaded[name], wanted, rtol=0, atol=close)
        state[name] = torch.from_numpy(wanted.astype(found[name].dtype).astype(np.float32))
    q = "model.layers.{}.self_attn.q_proj.weight"
    update = numbers(merged(pair.source_net, pair.adapter))
    for number, own in ((0, 0), (1, 2)):
        added = update[q.format(own)] - source[q.format(own)]
        state[q.format(number)] = torch.from_numpy(target[q.format(number)] + added).float()
    reference = FAMILIES["mistral"].build(2, seed=0)
    reference.load_state_dict(state)
    with torch.no_grad():
        logits = [one(torch.arange(20)[None]).logits for one in (net, reference)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
    config = json.loads((moved / CONFIG).read_text())
    assert config["modules_to_save"] == ["lm_head", "embed_tokens", "model.layers.1.mlp.up_proj"]
    assert config["task_type"] == "CAUSAL_LM"


def test_verify_recomputes_each_saved_layer(
    pair: LanguagePair, moved: Path, tmp_path: Path
) -> None:
    assert verify_file(moved).ok
    tensors = load_file(moved / WEIGHTS)
    key = "base_model.model.lm_head.weight"
    tensors[key][7, 3] += 1e-3
    shutil.copytree(moved.parent, tmp_path / "changed")
    with safe_open(moved / WEIGHTS, "np") as opened:
        save_file(tensors, tmp_path / "changed/out" / WEIGHTS, opened.metadata())
    found = verify_file(tmp_path / "changed/out")
    assert not found.ok
    assert any("lm.lm_head: differs from the target's layer" in one for one in found.problems)


def test_batches_and_scans_count_whole_layers(
    pair: LanguagePair, moved: Path, tmp_path: Path
) -> None:
    models = BasePair(load_base_model(pair.source), load_base_model(pair.target))
    prepared = read_job(FileJob(pair.adapter, tmp_path / "out"), models, COPY, Writing())
    written = sum(array.nbytes for array in load_file(moved / WEIGHTS).values())
    assert prepared.size == written
    adapter = resolve(load_adapter(pair.adapter), models.source.spec)
    assert written <= predicted_size(adapter, prepared.plan) <= written + 5 * 220


def test_on_the_same_base_model_saved_layers_keep_their_bytes(
    pair: LanguagePair, tmp_path: Path
) -> None:
    found = migrate_file(pair.adapter, pair.source, pair.source, tmp_path / "out", COPY)
    assert {c.fate for c in found.report.companions} == {Fate.CARRIED}
    given, found = whole(pair.adapter), whole(tmp_path / "out")
    assert given.keys() == found.keys()
    assert all(found[name].tobytes() == given[name].tobytes() for name in given)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(use_dora=True, **OTHERS),
        peft.LoHaConfig(**OTHERS),
        peft.LoKrConfig(**OTHERS),
    ],
    ids=["dora", "loha", "lokr"],
)
def test_saved_layers_move_beside_other_algorithms(
    pair: LanguagePair, config: Any, tmp_path: Path
) -> None:
    net = FAMILIES["mistral"].build(3, seed=0)
    adapted: Any = peft.get_peft_model(net, config)
    randomised(adapted)
    adapted.save_pretrained(str(tmp_path / "given"), save_embedding_layers=False)
    given = whole(trained(tmp_path / "given", np.random.default_rng(9)))
    migrate_file(tmp_path / "given", pair.source, pair.target, tmp_path / "out", COPY)
    source, target = numbers(pair.source_net)[HEAD], numbers(pair.target_net)[HEAD]
    wanted, found = target + (given[HEAD] - source), whole(tmp_path / "out")[HEAD]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    loaded = numbers(merged(pair.target_net, tmp_path / "out"))
    np.testing.assert_array_equal(loaded[HEAD], found)
    found = verify_file(tmp_path / "out")
    assert found.ok, found.problems


def test_a_new_head_is_copied(pair: LanguagePair, tmp_path: Path) -> None:
    kind = transformers.MistralForSequenceClassification
    nets = [kind.from_pretrained(f, num_labels=3) for f in (pair.source, pair.target)]
    write_lora(nets[0], tmp_path / "given", ("q_proj",), task_type="SEQ_CLS")
    trained(tmp_path / "given", np.random.default_rng(6))
    found = migrate_file(tmp_path / "given", pair.source, pair.target, tmp_path / "out", COPY)
    told = [(c.path, c.fate) for c in found.report.companions]
    assert told == [("lm.score", Fate.CARRIED)]
    given, out = whole(tmp_path / "given")["score.weight"], whole(tmp_path / "out")["score.weight"]
    assert out.tobytes() == given.tobytes()
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["task_type"] == "SEQ_CLS"
    assert verify_file(tmp_path / "out").ok
    loaded = merged(nets[1], tmp_path / "out")
    np.testing.assert_array_equal(loaded.score.weight.detach().numpy(), given)
    with torch.no_grad():
        tokens = torch.arange(1, 20)[None]
        last = loaded.model(tokens).last_hidden_state[0, -1].double().numpy()
        wanted = given.astype(np.float64) @ last
        np.testing.assert_allclose(loaded(tokens).logits[0].numpy(), wanted, atol=1e-5)


def test_a_head_that_both_base_models_have_changes_by_what_it_has_learned(tmp_path: Path) -> None:
    config = transformers.MistralConfig(**SIZES, num_hidden_layers=1)
    config.num_labels = 3
    nets = [transformers.MistralForSequenceClassification(config) for _ in range(2)]
    with torch.no_grad():
        for name, tensor in nets[1].state_dict().items():
            tensor.copy_(nets[0].state_dict()[name] + 1e-3 * torch.randn(tensor.shape))
    for name, net in zip(("source", "target"), nets, strict=True):
        net.save_pretrained(tmp_path / name)
    before = [numbers(net)["score.weight"].copy() for net in nets]
    write_lora(nets[0], tmp_path / "given", ("q_proj",), task_type="SEQ_CLS")
    trained(tmp_path / "given", np.random.default_rng(8))
    given, source, target, out = (tmp_path / n for n in ("given", "source", "target", "out"))
    migrate_file(given, source, target, out, COPY)
    wanted = before[1] + (whole(given)["score.weight"] - before[0])
    np.testing.assert_allclose(whole(out)["score.weight"], wanted, rtol=0, atol=1e-6)


def test_a_tied_embedding_and_its_head_move_both(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    pair = make_language_pair(
        tmp_path, "llama", depth=1, kept=(0,), target_modules=["q_proj"], **fields
    )
    tensors = load_file(pair.adapter / WEIGHTS)
    changed = {k: a if "lora_" in k else a + np.float32(0.25) for k, a in tensors.items()}
    save_file(changed, pair.adapter / WEIGHTS)
    migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", COPY)
    before = numbers(pair.target_net)
    after = numbers(merged(pair.target_net, tmp_path / "out"))
    for name in (HEAD, f"model.{EMBEDDING}"):
        np.testing.assert_allclose(after[name], before[name] + 0.25, rtol=0, atol=1e-6)


def test_layers_without_a_place_are_refused_by_name_or_stay_behind(
    pair: LanguagePair, tmp_path: Path
) -> None:
    net = FAMILIES["mistral"].build(2, seed=1)
    net.load_state_dict(pair.target_net.state_dict())
    net.resize_token_embeddings(48)
    net.save_pretrained(tmp_path / "larger")
    out = tmp_path / "out"
    with pytest.raises(NoSavedLayer, match=r"lm_head\.weight: the layer has another shape") as said:
        migrate_file(pair.adapter, pair.source, tmp_path / "larger", out, COPY)
    assert "embed_tokens" in str(said.value)
    assert "up_proj" not in str(said.value)
    found = migrate_file(pair.adapter, pair.source, tmp_path / "larger", out, PARTIAL)
    assert [c.fate for c in found.report.companions].count(Fate.OTHER_WIDTH) == 2
    assert whole(out).keys() == {UP.format(1)}
    assert json.loads((out / CONFIG).read_text())["modules_to_save"] == [
        "model.layers.1.mlp.up_proj"
    ]
    assert verify_file(out).ok


def test_a_new_head_of_unknown_width_is_said_to_be_one() -> None:
    head = PlannedCompanion("score.weight", "saved", "lm.score", None, Fate.OTHER_WIDTH, 0.0)
    assert "no layer tells how wide both base models are" in str(NoSavedLayer("a", [head], "t"))


@pytest.mark.parametrize(
    ("writing", "message"),
    [
        (Writing(format="mlx"), "a whole layer of modules_to_save, to be written as mlx"),
        (Writing(reader="vllm"), "a tensor beside the pairs: saved"),
    ],
)
def test_formats_without_saved_layers_are_refused(
    pair: LanguagePair, writing: Writing, message: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRefused, match=message):
        migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", COPY, writing)
    excluded = MigrationOptions(method="copy", exclude=("*lm_head", "*embed_tokens", "*up_proj"))
    assert migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "out", excluded, writing)


def test_a_scan_says_so_before_anything_moves(pair: LanguagePair) -> None:
    models = BasePair(load_base_model(pair.source), load_base_model(pair.target))
    item = Input(pair.adapter, Path("adapter"))
    for_all, for_vllm = (
        Scanner(models, COPY, Writing(reader=reader)).scan([item])[0].record
        for reader in (None, "vllm")
    )
    assert (for_all.verdict, for_all.reason) == ("partial", None)  # a layer has no partner
    assert for_vllm.verdict == "refused"
    assert "a tensor beside the pairs: saved" in str(for_vllm.message)


def test_layers_of_tokens_with_other_numbers_stay_behind(pair: LanguagePair) -> None:
    spec = load_base_model(pair.source).spec
    adapter = resolve(load_adapter(pair.adapter), spec)
    same, exchanged = {path: path for path in spec.modules}, TokenMap({0: 1, 1: 0}, ())
    found = plan_companions(adapter, spec, spec, same, (), PARTIAL, exchanged)
    fates = {c.source_path.rpartition(".")[2]: c.fate for c in found}
    others = dict.fromkeys(("lm_head", "embed_tokens"), Fate.OTHER_TOKENS)
    assert fates == {"up_proj": Fate.CARRIED, **others}


def test_norms_and_conversions_stay_refused(pair: LanguagePair, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="whole layers"):
        convert_file(pair.adapter, "mlx", tmp_path / "out", pair.source)
    net = FAMILIES["mistral"].build(3, seed=0)
    write_lora(net, tmp_path / "given", ("q_proj",), modules_to_save=["model.norm"])
    trained(tmp_path / "given", np.random.default_rng(7))
    with pytest.raises(NoSavedLayer, match=r"model\.norm\.weight: no layer stands for it there"):
        migrate_file(tmp_path / "given", pair.source, pair.target, tmp_path / "out", COPY)


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ("saved", "a whole layer of modules_to_save"),
        ("rows", "whole rows of an embedding"),
        ("bias", "a vector that is added to a bias"),
    ],
)
def test_no_student_is_taught_beside_other_tensors(
    pair: LanguagePair, part: Part, found: str
) -> None:
    given = load_adapter(pair.adapter)
    given = replace(given, companions=(replace(given.companions[0], part=part),))
    one = ToRefine(given, given, {}, (), "one")
    with pytest.raises(AdapterRefused, match=rf"{found} \({part}\); expected pairs alone") as said:
        require_kernels(one, load_base_model(pair.source))
    assert ("--exclude" in str(said.value)) == (part != "bias")


def test_of_a_model_without_its_head_layers_have_names_without_one(
    pair: LanguagePair, tmp_path: Path
) -> None:
    source, target = pair.source_net.base_model, pair.target_net.base_model
    fields = {"modules_to_save": ["layers.2.mlp.up_proj"], "task_type": "FEATURE_EXTRACTION"}
    write_lora(type(source)(source.config), tmp_path / "given", ("q_proj",), **fields)
    migrate_file(tmp_path / "given", pair.source, pair.target, tmp_path / "out", COPY)
    (name,) = json.loads((tmp_path / "out" / CONFIG).read_text())["modules_to_save"]
    # Peft looks at the ends of names.
    found = [module for module, _ in target.named_modules() if module.endswith(name)]
    assert found == ["layers.1.mlp.up_proj"]
    assert f"{found[0]}.weight" in whole(tmp_path / "out")
    assert verify_file(tmp_path / "out").ok
