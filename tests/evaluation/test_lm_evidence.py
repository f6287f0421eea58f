"""The laboratory of language models: its rules on made rows, its models as others read them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from transformers import LlamaForCausalLM

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.evaluation.laboratory.lm import texts
from prolora_jax.evaluation.laboratory.lm.arms import ARMS
from prolora_jax.evaluation.laboratory.lm.model_folders import NF4, packed, write_model
from prolora_jax.evaluation.laboratory.lm.recipe import LmBase, LmLaboratory, LmLesson
from prolora_jax.evaluation.laboratory.lm.texts import documents
from prolora_jax.evaluation.laboratory.lm.trials import run_lm, scores
from prolora_jax.evaluation.laboratory.lm.workshop import LmWorkshop
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers.tensors import write_tensors
from prolora_jax.io.documents import read_lines, read_yaml
from prolora_jax.nets.lm.loading import load_lm
from prolora_jax.refine.lm.recipe import LmRecipe

CONFIGS = Path(__file__).parents[2] / "configs" / "laboratory"
CONFIG = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
LAB = LmLaboratory(
    bases=(
        LmBase("source", "train", steps=3),
        LmBase("q4", "pack", parent="source", packing="q4"),  # its programs are the source's
        LmBase("dropped", "drop", parent="source", layers=(0,)),
        LmBase("narrow", "narrow", parent="source", width=24),
    ),
    lessons=(LmLesson("secret", "secret", steps=4, rate=0.01, batch=2, length=32, rank=2),),
    targets=("q4",),
    arms=("copy", "copy match=name", "shifted"),
    refine=LmRecipe(texts=4, tokens=8, steps=2, batch=2, at_once=4),
    taught=("q4",),
    seeds=(0,),
    config=CONFIG,
    rows=8,
    batch=2,
    length=32,
    documents=3,
    judged=32,
)


@pytest.fixture(scope="module", autouse=True)
def made_texts(little_optimized: None):
    """Texts of this file instead of those of a Debian system."""

    def few(kind: str) -> dict[str, str]:
        return {f"{kind}{n}": f"{kind} number {n} has some words in it. " * 9 for n in range(12)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "system_texts", few)
        texts.texts_of.cache_clear()
        yield
    texts.texts_of.cache_clear()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> LmWorkshop:
    return LmWorkshop(tmp_path_factory.mktemp("lab"), LAB)


def test_a_cell_from_end_to_end_and_nothing_twice(workshop: LmWorkshop) -> None:
    said: list[str] = []
    workshop.say = said.append
    rows = {row["arm"]: row for row in run_lm(workshop)}
    assert set(rows) == {"none", "trained", *LAB.arms, "student"}
    assert rows["none"]["arrived"][0] == 0.0
    assert rows["trained"]["arrived"][0] == pytest.approx(1.0)
    assert rows["copy"]["moved"] == 2 * 7
    assert rows["student"]["disagreement"] is not None
    kept = list(said)
    assert len(run_lm(workshop)) == len(rows)
    assert said == kept
    file = workshop.folder / "results" / "q4" / "secret-s0.jsonl"
    assert [row["arm"] for row in read_lines(file)] == list(rows)


def test_layers_are_dropped_and_channels_taken_out_as_transformers_has_them(
    workshop: LmWorkshop,
) -> None:
    for name in ("dropped", "narrow", "source"):
        workshop.make_base(name)
    given, found, narrow = (
        LlamaForCausalLM.from_pretrained(workshop.base_folder(name))
        for name in ("source", "dropped", "narrow")
    )
    before, after = given.state_dict(), found.state_dict()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name.replace("layers.0.", "layers.1.")])
    # What is left of the residual stream is the channels that the embedding uses most.
    kept = before["model.embed_tokens.weight"].square().sum(0).argsort(descending=True)[:24]
    kept = kept.sort().values
    up, down = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "down"))
    torch.testing.assert_close(narrow.state_dict()[up], before[up][:, kept])
    torch.testing.assert_close(narrow.state_dict()[down], before[down][kept])
    assert narrow.config.head_dim == given.config.head_dim == 16


def test_losses_and_exact_answers_are_those_of_transformers(workshop: LmWorkshop) -> None:
    workshop.make_base("source")
    folder = workshop.base_folder("source")
    net: Any = LlamaForCausalLM.from_pretrained(folder).eval()
    asked = np.arange(40, 46)
    with torch.no_grad():
        whole = net.generate(torch.from_numpy(asked)[None], max_new_tokens=4, do_sample=False)
    whole = whole[0].numpy()
    assert len(whole) == 10
    wrong = np.append(whole[:-1], (whole[-1] + 1) % 256)
    said = np.arange(10) >= 6
    model, params = load_lm(folder)
    exam = documents([(whole, said), (wrong, said)], 12)
    found = scores(model, params, exam)
    assert found.exact == 0.5
    with torch.no_grad():
        logits = net(torch.from_numpy(np.stack([whole, wrong]))).logits[:, :-1]
    likely = torch.log_softmax(logits, -1).numpy()[:, 5:]
    for place, ids in enumerate((whole, wrong)):
        nll = -likely[place][np.arange(4), ids[6:]].mean()
        assert found.losses[place] == pytest.approx(nll, abs=1e-5)


def test_packed_weights_are_read_as_what_they_were_rounded_to(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    key = "model.layers.0.self_attn.q_proj.weight"
    read = {}
    for packing in ("nf4", "int8"):
        file = tmp_path / packing / "model.safetensors"
        write_tensors(file, packed(key, weight, packing), {"format": "pt"})
        model = load_base_model(tmp_path / packing)
        (path,) = (p for p in model.spec.modules if p.endswith("q_proj"))
        assert model.packing(path) is not None
        read[packing] = model.matrix(path)
    largest = np.abs(weight).max(axis=1, keepdims=True)  # of a row, which is a block here
    nearest = np.abs((weight / largest)[..., None] - NF4).argmin(-1)
    np.testing.assert_allclose(read["nf4"], NF4[nearest] * largest, rtol=1e-6)
    assert (np.abs(read["int8"] - weight) <= largest / 254 * 1.001).all()
    q4 = GGMLQuantizationType.Q4_0
    wanted = quants.dequantize(quants.quantize(weight, q4), q4)
    np.testing.assert_allclose(packed(key, weight, "q4")[key], wanted, atol=1e-6)


def test_a_model_that_is_not_given_is_asked_for(tmp_path: Path) -> None:
    lab = replace(LAB, bases=(LmBase("source", "given"),))
    with pytest.raises(UsageError, match="fetch it with scripts/fetch_lm.py") as refused:
        LmWorkshop(tmp_path, lab).make_base("source")
    assert refused.value.code is Refusal.MISSING_FILE


def test_only_a_model_of_bytes_does_without_a_tokenizer(tmp_path: Path) -> None:
    encode = texts.encoder_of(tmp_path, {"vocab_size": 256})
    assert bytes(encode("né").astype(np.uint8).tolist()) == "né".encode()
    with pytest.raises(BaseModelError, match="tokenizer.json: found no tokenizer .* of 49152"):
        texts.encoder_of(tmp_path, {"vocab_size": 49152})


@pytest.mark.parametrize("name", ["lm", "lm_smollm2"])
def test_shipped_recipes_name_what_there_is(name: str) -> None:
    lab = read_yaml(CONFIGS / f"{name}.yaml", LmLaboratory)
    names = {base.name for base in lab.bases}
    assert {*lab.targets, *lab.taught} <= names
    assert {base.parent for base in lab.bases} - {""} <= names
    assert {*lab.arms} <= {*ARMS}
    stamps = [lab.base_stamp(base.name) for base in lab.bases]
    assert len({*stamps}) == len(stamps)


def test_written_models_are_what_is_read(tmp_path: Path, workshop: LmWorkshop) -> None:
    made = workshop.lm("source")
    write_model(tmp_path, made.raw, made.params)
    again = load_lm(tmp_path)[1]
    table = again["model"]["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(table, made.params["model"]["embed_tokens"]["embedding"])
    ids = jnp.asarray(np.arange(12)[None])
    both: Any = [made.model.apply({"params": params}, ids) for params in (made.params, again)]
    wanted, found = both
    np.testing.assert_array_equal(np.asarray(wanted.logits), np.asarray(found.logits))
