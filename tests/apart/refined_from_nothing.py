"""Refined where not all can be copied: the target has another text encoder."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from refined_pairs import (
    OWN,
    RECIPE,
    loaded,
    made_adapter,
    made_pair,
    require_torchs_teacher,
)

import prolora_jax as pl
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.outputs.reports import read_report, write_report
from prolora_jax.migration.files import Writing
from prolora_jax.migration.pair import BasePair
from prolora_jax.refine.job import effect
from prolora_jax.refine.job.bases import DrawingBases
from prolora_jax.refine.job.files import FileRefinement, RefineRequest
from prolora_jax.verification.file import verify_file

pytestmark = pytest.mark.usefixtures("little_optimized")


def test_what_cannot_be_copied_is_learned_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The newer base looks at texts of another width, and predicts velocity."""
    pair = made_pair(tmp_path, "sd15", "sd21")
    source, target = map(load_base_model, pair.folders)
    given = tmp_path / "given.safetensors"
    pl.save_adapter(made_adapter(loaded(pair.folders[0])[1], 1), given, base=source.spec)
    writing = Writing("lora")
    request = RefineRequest(RECIPE, writing, pl.MigrationOptions(method="copy"), OWN)
    job = FileRefinement(
        DrawingBases(*pair.folders), BasePair(source, target), request, tmp_path / "w"
    )
    out = tmp_path / "out.safetensors"
    seen, lesson = [], effect.lesson
    monkeypatch.setattr(effect, "lesson", lambda *asked: seen.append(lesson(*asked)) or seen[0])
    (found,) = job.refine([(given, out)])
    require_torchs_teacher(pair, seen[0])
    report = found.report
    assert found.refusal is None
    assert report is not None
    assert report.refined is not None
    new = [one.path for one in report.refined.from_zero]
    assert new == sorted(m.path for m in pair.given.modules if m.path.endswith("attn2.to_v"))
    assert all(one.norm > 0 for one in report.refined.from_zero)
    written = {m.path: m for m in pl.load_adapter(out, base=target.spec).modules}
    assert written.keys() == {m.path for m in pair.given.modules}
    assert written[new[0]].down.shape == (2, 16)
    before, after = report.refined.missed or (0, 0)
    assert after < before
    pair.target.load_lora_weights(tmp_path, weight_name=out.name)
    checked = verify_file(out)
    assert (checked.verdict, checked.ok) == ("learned", False), checked.problems
    told = report.to_dict()
    assert read_report(out) == told
    short = report.refined.from_zero[1:]
    lie = partial(type(report.refined), **{**vars(report.refined), "from_zero": short})
    write_report(out, type(report)(**{**vars(report), "refined": lie()}))
    assert any(new[0] in problem for problem in verify_file(out).problems)
    assert np.isfinite(report.refined.disagreement)
