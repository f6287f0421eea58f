"""`migrate --method auto` where it copies, and what the report says why (taught: tests/apart)."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from language_models import LanguagePair, make_language_pair, write_lora
from safetensors.numpy import load_file, save_file

from prolora_jax.catalog.catalog import catalog_status
from prolora_jax.catalog.refined import RefinedFiles, refine_files
from prolora_jax.cli.main import run
from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.outputs.reports import read_report, report_path
from prolora_jax.plans.report import MigrationReport
from prolora_jax.refine import guard
from prolora_jax.refine.job import files
from prolora_jax.refine.job.bases import DrawingBases
from prolora_jax.refine.job.files import RefineRequest
from prolora_jax.refine.lm.recipe import LmRecipe
from prolora_jax.verification.file import verify_file

WEIGHTS = "adapter_model.safetensors"
RECIPE = LmRecipe(texts=8, tokens=10, steps=20, batch=4, at_once=8, top=12)


def report_of(out: Path) -> MigrationReport:
    return msgspec.convert(read_report(out), MigrationReport)


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    """Models of a kind whose adapters move, but whose net is not computed here."""
    return make_language_pair(tmp_path_factory.mktemp("gpt2"), "gpt2", depth=3, kept=(0, 2))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LanguagePair:
    return make_language_pair(tmp_path_factory.mktemp("qwen3"), "qwen3", depth=3, kept=(0, 2))


def test_where_no_net_is_computed_the_copy_is_that_of_copy(
    unlike: LanguagePair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["migrate", str(unlike.adapter), "--source", str(unlike.source)]
    words += ["--target", str(unlike.target), "-q"]
    assert run([*words, "--method", "auto", "--out", str(tmp_path / "auto")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    report = report_of(tmp_path / "auto")
    assert report.decided is not None
    assert f"{report.decided}." in said
    assert report.decided.startswith("copied, as nothing was taught: ")
    assert "model_type 'gpt2'; expected" in report.decided
    assert (report.method, report.options.method, report.refined) == ("auto", "copy", None)
    assert run([*words, "--method", "copy", "--out", str(tmp_path / "copy")]) == 0
    for name in (WEIGHTS, "adapter_config.json"):
        assert (tmp_path / "auto" / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()
    assert verify_file(tmp_path / "auto").verdict == "verified"
    assert run(["refine", *words[1:], "--out", str(tmp_path / "refined")]) == 2  # has no choice


def test_without_the_extra_it_says_what_to_install(
    pair: LanguagePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        message = "refine: found no optax; expected it; pip install it"
        raise UsageError(message, code=Refusal.MISSING_LIBRARY)

    monkeypatch.setattr(files, "require_optax", missing)
    bases, out = DrawingBases(pair.source, pair.target), tmp_path / "out"
    refine_files([pair.adapter], out, bases, RefineRequest(decides=True))
    assert str(report_of(out).decided).endswith("found no optax; expected it; pip install it")
    with pytest.raises(UsageError, match="no optax"):
        refine_files([pair.adapter], tmp_path / "other", bases, RefineRequest())


def test_damage_is_no_reason_for_a_copy(
    pair: LanguagePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*given: object) -> None:
        raise BaseModelError("model.safetensors: cut off", code=Refusal.TRUNCATED)

    monkeypatch.setattr(files, "text_pair", damaged)
    bases = DrawingBases(pair.source, pair.target)
    with pytest.raises(BaseModelError, match="cut off"):
        refine_files([pair.adapter], tmp_path / "out", bases, RefineRequest(decides=True))
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_says_otherwise_does_not_verify(unlike: LanguagePair, tmp_path: Path) -> None:
    bases, out = DrawingBases(unlike.source, unlike.target), tmp_path / "out"
    refine_files([unlike.adapter], out, bases, RefineRequest(decides=True))
    told = json.loads(report_path(out).read_text())
    for change in ({"decided": "taught: R = 0.010"}, {"decided": None}, {"method": None}):
        report_path(out).write_text(json.dumps(told | change))
        assert "the report says that `auto` chose" in " ".join(verify_file(out).problems)


def test_a_folder_has_a_manifest_and_is_taken_up_again(
    pair: LanguagePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "disagreement", lambda **losses: 0.7)  # where a student is asked for
    catalog, out = tmp_path / "catalog", tmp_path / "out"
    for name in ("a", "twin"):
        shutil.copytree(pair.adapter, catalog / name)
    write_lora(pair.source_net, catalog / "words", ("embed_tokens", "q_proj"))
    (catalog / "junk.safetensors").write_bytes(b"junk")
    bases, request = DrawingBases(pair.source, pair.target), RefineRequest(texts=RECIPE)

    def again(asked: RefineRequest) -> RefinedFiles:
        return refine_files([catalog], out, bases, asked)

    def made(found: RefinedFiles) -> list[str]:
        return sorted(one.output.name for one in found.found if one.report is not None)

    # As an earlier run into this catalog left it when it was killed.
    shutil.copytree(pair.adapter, catalog / "other.refine-work" / "adapter-0")
    auto = RefineRequest(texts=RECIPE, decides=True)
    assert made(again(auto)) == ["a", "twin", "words"]
    summary, records = catalog_status(out)
    assert summary.options == {"method": "auto"}
    assert summary.by_state == {
        "migrated": 2,
        "duplicate": 1,
        "refused": 1,
        "ignored": 1,
    }
    said = {record.input: record for record in records}
    for name in ("a", "words"):
        assert str(said[name].message).startswith("copied, as nothing was taught: two language mod")
    assert (said["twin"].duplicate_of, said["junk.safetensors"].reason) == ("a", "truncated")
    assert said["a"].energy_moved == pytest.approx(said["a"].energy_out)
    assert run(["status", str(out), "--report", str(tmp_path / "page.html")]) == 0
    assert "as nothing was taught: two language" in (tmp_path / "page.html").read_text()
    assert run(["verify", str(out), "-q"]) == 0  # copies, each recomputed
    told = json.loads(report_path(out / "a").read_text())
    assert told["decided"] == said["a"].message
    # Finished: nothing is opened to be refined, and what is said of the pair stays.
    kept = again(auto)
    assert made(kept) == []
    assert sorted(path.name for path in kept.finished_before) == ["a", "twin", "words"]
    assert [one.path.name for one in kept.refused] == ["junk.safetensors"]
    # Another content is another input; the same one, touched, is not.
    tensors = load_file(catalog / "words" / WEIGHTS)
    save_file({k: 2 * v for k, v in tensors.items()}, catalog / "words" / WEIGHTS)
    (catalog / "a" / WEIGHTS).touch()
    assert made(again(auto)) == ["words"]
    written = load_file(out / "words" / WEIGHTS)
    key = next(key for key in written if "lora_B" in key and "q_proj" in key)
    assert np.abs(written[key]).max() > 0
    # What is asked is another: all of it is made again, and what cannot be taught is refused.
    assert made(again(request)) == ["a", "twin"]
    assert {one.path.name for one in again(request).refused} == {"words", "junk.safetensors"}
    # What is said beside the numbers goes into the output, and makes another input, too.
    config = catalog / "twin" / "adapter_config.json"
    for revision in ("main", "other"):
        told = json.loads(config.read_text()) | {"revision": revision}
        config.write_text(json.dumps(told))
        assert made(again(request)) == ["twin"]
