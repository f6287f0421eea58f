"""Adapters of language models refined: answers are the sum of three torch nets, and are learned."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
import torch
from language_models import FAMILIES, LanguagePair, make_language_pair, merged

from prolora_jax.catalog.refined import RefinedFiles, refine_files
from prolora_jax.cli.main import run
from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.outputs.reports import read_report, report_path
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.nets.lm.loading import load_lm
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.report import MigrationReport
from prolora_jax.refine.job.bases import DrawingBases
from prolora_jax.refine.job.files import RefineRequest
from prolora_jax.refine.job.student import factors_of
from prolora_jax.refine.lm import pair as pair_module
from prolora_jax.refine.lm.answers import Teachers, answers, divergence
from prolora_jax.refine.lm.pools import Texts, WritingModel, pool
from prolora_jax.refine.lm.recipe import LmRecipe
from prolora_jax.verification.file import verify_file

pytestmark = pytest.mark.usefixtures("little_optimized")
RECIPE = LmRecipe(texts=8, tokens=10, steps=20, batch=4, at_once=8, top=12, rate=1e-2)


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    # The adapter is strong enough to be seen in what is said.
    return make_language_pair(tmp_path_factory.mktemp("pair"), "qwen3", depth=3, kept=(0, 2))


def refined(pair: LanguagePair, out: Path, **changes: Any) -> RefinedFiles:
    request = RefineRequest(texts=replace(RECIPE, **changes))
    return refine_files([pair.adapter], out, DrawingBases(pair.source, pair.target), request)


def report_of(out: Path) -> MigrationReport:
    return msgspec.convert(read_report(out), MigrationReport)


@pytest.fixture(scope="module")
def output(pair: LanguagePair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("refined") / "out"
    refined(pair, out)
    return out


def log_likelihoods(net: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.log_softmax(net(torch.from_numpy(ids).long()).logits, -1).numpy()


def speakers_of(pair: LanguagePair) -> Teachers:
    source, target = WritingModel(*load_lm(pair.source)), WritingModel(*load_lm(pair.target))
    return Teachers(target, source, source.beside(factors_of(load_adapter(pair.adapter))))


def test_answers_are_the_sum_of_what_three_torch_nets_say(pair: LanguagePair) -> None:
    ids = np.random.default_rng(1).integers(0, 40, (3, 10)).astype(np.int32)
    real = np.arange(10)[None] < np.array([[10], [6], [8]])
    found = answers(speakers_of(pair), Texts(ids, real), RECIPE, 40, quiet)
    target, source = (log_likelihoods(net, ids) for net in (pair.target_net, pair.source_net))
    taught = log_likelihoods(merged(pair.source_net, pair.adapter), ids)
    wanted = (target + taught - source)[:, :-1]
    wanted -= np.log(np.exp(wanted).sum(-1, keepdims=True))
    likeliest = -np.sort(-wanted, axis=-1)[..., :12]
    np.testing.assert_array_equal(found.counts, real[:, 1:])
    told = found.counts > 0  # what padding is answered nobody asks
    np.testing.assert_allclose(found.log_likelihoods[told], likeliest[told], atol=1e-5)
    chosen = np.take_along_axis(wanted, found.tokens, axis=-1)
    np.testing.assert_allclose(chosen[told], likeliest[told], atol=1e-5)


def test_the_divergence_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(2)
    said, wanted = rng.normal(size=(2, 4, 9)), rng.normal(size=(2, 3, 9))
    wanted -= np.log(np.exp(wanted).sum(-1, keepdims=True))
    own = said[:, :-1] - np.log(np.exp(said[:, :-1]).sum(-1, keepdims=True))
    counts = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    order = np.argsort(-wanted, axis=-1)[..., :4]
    total = 0.0
    for n, place in zip(*np.nonzero(counts), strict=True):
        top = order[n, place]
        p, q = np.exp(wanted[n, place, top]), np.exp(own[n, place, top])
        p, q = np.append(p, 1 - p.sum()), np.append(q, 1 - q.sum())
        total += float((p * np.log(p / q)).sum())
    top = pair_module.TopAnswers(order, np.take_along_axis(wanted, order, -1), counts)
    found = divergence(jnp.asarray(said, jnp.float32), top)
    assert float(found) == pytest.approx(total / counts.sum(), abs=1e-5)


def test_a_text_ends_with_its_first_end(pair: LanguagePair) -> None:
    speaker = WritingModel(*load_lm(pair.target))
    config = replace(speaker.model.config, eos_token_ids=tuple(range(20)), bos_token_id=7)
    speaker = speaker._replace(model=speaker.model.clone(config=config))
    texts = pool(speaker, RECIPE, 40, "target", quiet)
    assert texts.ids.shape == (8, 10)
    assert (texts.ids[:, 0] == 7).all()
    assert (texts.ids < 40).all()
    for ids, real in zip(texts.ids, texts.real, strict=True):
        ends = np.flatnonzero(ids[2:] < 20) + 2  # the two that were given are no end
        last = int(ends[0]) if len(ends) else 9
        np.testing.assert_array_equal(real, np.arange(10) <= last)


def test_a_student_comes_nearer_to_the_answers(output: Path) -> None:
    record = report_of(output).refined
    assert record is not None
    assert (record.way, record.teacher, record.steps) == ("refine", "effect", 20)
    assert record.missed is not None
    before, after = record.missed
    assert after < before < 1.0
    assert record.loss_curve[-1] < record.loss_curve[0]
    assert abs(record.disagreement) < 0.3
    assert (report_of(output).method, report_of(output).decided) == (None, None)
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"


def test_other_texts_are_nearer_to_the_answers_than_those_of_the_copy(
    pair: LanguagePair, output: Path, tmp_path: Path
) -> None:
    options = MigrationOptions(method="copy")
    migrate_file(pair.adapter, pair.source, pair.target, tmp_path / "copy", options)
    ids = np.random.default_rng(1).integers(0, 40, (4, 10))
    target, source = (log_likelihoods(net, ids) for net in (pair.target_net, pair.source_net))
    wanted = target + log_likelihoods(merged(pair.source_net, pair.adapter), ids) - source
    copied, learned = (
        log_likelihoods(merged(pair.target_net, adapter), ids)
        for adapter in (tmp_path / "copy", output)
    )
    missed = [float(np.square(said - wanted).mean()) for said in (target, copied, learned)]
    assert missed[2] < missed[1] < missed[0]


def test_a_job_that_was_killed_gives_the_same_file(
    pair: LanguagePair, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, steps = tmp_path / "out", 0

    def killed(work: Any, state: Any, total: int) -> None:
        nonlocal steps
        keep(work, state, total)
        steps += 1
        if steps == 12:
            raise KeyboardInterrupt

    keep = pair_module.keep_state
    monkeypatch.setattr(pair_module, "keep_state", killed)
    with pytest.raises(KeyboardInterrupt):
        refined(pair, out)
    assert not out.exists()
    refined(pair, out)
    assert steps == 12 + 10  # from step 10, which was kept
    name = "adapter_model.safetensors"
    found, wanted = (load_adapter(folder) for folder in (out, output))
    assert (out / name).stat().st_size == (output / name).stat().st_size
    for a, b in zip(found.modules, wanted.modules, strict=True):
        np.testing.assert_array_equal(a.up, b.up)
    assert not Path(f"{out}.refine-work").exists()


def test_verify_says_what_was_learned(output: Path) -> None:
    found = verify_file(output)
    assert not found.problems
    assert found.verdict == "learned"
    assert report_path(output).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"disagreement": 0.01}, "says R = 0.01; its losses give"),
        ({"losses": {"source_on_target": 9.0}}, "its losses give"),
        ({"losses": {"source_on_target": 1.7e308, "target_on_source": 1e308}}, "losses give inf"),
        ({"losses": {"target_own": -1.0}}, "expected four positive ones"),
    ],
)
def test_verify_computes_r_anew(
    output: Path, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    shutil.copytree(output, tmp_path / "out")
    told = json.loads(report_path(output).read_text())
    change = {k: told["refined"][k] | v if k == "losses" else v for k, v in change.items()}
    told["refined"] |= change
    report_path(tmp_path / "out").write_text(json.dumps(told))
    assert message in " ".join(verify_file(tmp_path / "out").problems)


@pytest.mark.parametrize("loss", [None, "1.0", [1.0]])
def test_losses_that_are_no_numbers_are_no_report(
    output: Path, loss: object, tmp_path: Path
) -> None:
    told = json.loads(report_path(output).read_text())
    told["refined"]["losses"]["target_own"] = loss
    report_path(tmp_path / "out").write_text(json.dumps(told))
    with pytest.raises(UsageError, match="found no migration report .*refined.losses") as refused:
        verify_file(tmp_path / "out")
    assert refused.value.code is Refusal.BAD_REPORT


def test_models_that_number_tokens_otherwise_are_refused(
    pair: LanguagePair, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    shutil.copytree(pair.target, target)
    for folder, order in ((target, ("a", "b")), (tmp_path / "source", ("b", "a"))):
        if not folder.exists():
            shutil.copytree(pair.source, folder)
        vocabulary = {token: number for number, token in enumerate(order)}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    bases = DrawingBases(tmp_path / "source", target)
    with pytest.raises(BaseModelError, match="token 'b' as 0 and as 1") as refused:
        refine_files([pair.adapter], tmp_path / "out", bases, RefineRequest(texts=RECIPE))
    assert refused.value.code is Refusal.WRONG_BASE


def test_models_of_different_texts_keep_the_copy(pair: LanguagePair, tmp_path: Path) -> None:
    # Sharper by far: what the one writes is most unlikely to the other.
    loud = FAMILIES["qwen3"].build(2, seed=1)
    loud.load_state_dict({k: t.clone() for k, t in pair.target_net.state_dict().items()})
    with torch.no_grad():
        loud.lm_head.weight.mul_(-40.0)
    loud.save_pretrained(tmp_path / "loud")
    out = tmp_path / "out"
    bases = DrawingBases(pair.source, tmp_path / "loud")
    refine_files([pair.adapter], out, bases, RefineRequest(texts=RECIPE))
    record = report_of(out).refined
    assert record is not None
    assert record.way == "copy"
    assert record.disagreement > 0.3
    assert "different kinds of text" in record.sentence


def test_the_command_refuses_options_about_pictures(
    pair: LanguagePair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["refine", str(pair.adapter), "--source", str(pair.source), "--target"]
    asked += [str(pair.target), "--out", str(tmp_path / "out"), "--budget", "low"]
    assert run([*asked, "--guidance", "2"]) == 2
    assert "--guidance: found it for language models" in capfd.readouterr().err
    assert run([*asked, "--source-parts", str(pair.source)]) == 2
    assert "--source-parts or --target-parts: found it for" in capfd.readouterr().err
    assert run([*asked, "--micro-batch", "3"]) == 2
    assert "cannot be cut into micro-batches" in capfd.readouterr().err
    asked = ["similarity", "--by-samples", "--source", str(pair.source), "--target"]
    assert run([*asked, str(pair.target)]) == 2
    assert "found a language model, which draws nothing" in " ".join(capfd.readouterr().err.split())
    assert not [*tmp_path.iterdir()]


def test_the_command_refines(
    pair: LanguagePair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["refine", str(pair.adapter), "--source", str(pair.source), "--target"]
    asked += [str(pair.target), "--out", str(out), "--json", "--steps", "3", "--texts", "4"]
    assert run([*asked, "--tokens", "8", "--batch", "2"]) == 0
    told = json.loads(capfd.readouterr().out)["files"][0]["refined"]
    assert (told["way"], told["steps"]) == ("refine", 3)
    assert load_adapter(out).modules
