"""A file whose input is gone: all that can be checked is, and it is never called verified.

The right files come from `reference`.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import reference
from migrated import Files, make_files

from prolora_jax.plans.plan import Skip, SkippedModule
from prolora_jax.verification.result import VerifyReport
from prolora_jax.verification.without_input import verify_without_input


def check(files: Files) -> VerifyReport:
    report = json.loads(files.report.to_json())
    return verify_without_input(files.output, files.source, files.target, report, ["in"])


def problems(files: Files) -> str:
    found = check(files)
    assert found.verdict == "failed"
    assert not found.ok
    own = (f"{m.path}: {p}" for m in found.modules for p in m.problems)
    return "\n".join([*found.problems, *own])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("more", [{}, {"rank": "2"}, {"rescale": "norm", "scale": 0.5}])
@pytest.mark.parametrize("method", reference.ARMS)
def test_a_right_file_is_not_compared_and_nothing_is_wrong(method, more, dtype):
    found = check(make_files(dtype, method=method, **more))
    assert found.problems == ()
    assert [m.problems for m in found.modules if m.problems] == []
    assert (found.verdict, found.ok, found.absent) == ("not-compared", False, ("in",))
    assert found.counts == {"not-compared": 5}
    assert any("the input is not there" in line for line in found.not_checked)


WRONG_RECORDS = {
    "phi_left": (0.9, "report has phi_left"),
    "k_source": (5, "report has k_source 5"),
    "norm_out": (99.0, "report has norm_out 99; the file's is"),
    "rank_out": (1, "report has rank_out 1; the file uses"),
    "kept": (1.5, "report has kept 1.5"),
    "energies": ((0.5, 0.6, 0.7, 0.8), "expected shares of a whole"),
    "norm_in": (1e-3, "report has norm_out"),
    "flags": (("weak-match",), "report has flags"),
    "source_path": ("unet.wide", "no name, shape or weight leads there"),
    "still_left": (3, "report has still_left 3"),
}


@pytest.mark.parametrize("name", WRONG_RECORDS)
def test_what_the_bases_and_the_file_say_of_a_record_is_checked(name: str):
    value, said = WRONG_RECORDS[name]
    assert said in problems(make_files().with_record(0, **{name: value}))


def test_a_module_that_is_left_out_is_noticed():
    files = make_files()
    output = replace(files.output, modules=files.output.modules[1:])
    assert "the report has it, the file does not" in problems(replace(files, output=output))
    listed = SkippedModule(Skip.BELOW_THRESHOLD, "unet.a", "unet.a")
    skipped = (*files.report.skipped, listed)
    report = replace(files.report, modules=files.report.modules[1:], skipped=skipped)
    files = replace(files, output=output, report=report).counted()
    assert "report says skip (below-threshold), replanned: project" in problems(files)


@pytest.mark.parametrize("method", ["subspace", "null-space", "prolora"])
def test_an_update_outside_of_the_methods_spans_is_noticed(method):
    files, other = make_files(method=method), make_files(method="copy")
    before = files.output.modules[0]
    after = other.output.modules[0].padded(before.rank)
    norm = float(np.linalg.norm(after.up @ after.down))
    files = files.with_module(0, down=after.down, up=after.up)
    files = files.with_record(0, norm_out=norm, rank_out=3)
    assert f"of its update lies where {method} leaves nothing" in problems(files)


def test_options_fingerprints_header_and_tensors_beside_are_checked():
    files = make_files()
    assert "holds float32, asked for was float16" in problems(files.with_options(dtype="float16"))
    assert "has rank 3, asked for was 2" in problems(files.with_options(rank="2"))
    assert "replanned: skip (below-thr" in problems(files.with_options(min_similarity=0.99))
    wrong = replace(files.report.target, fingerprint="0" * 64)
    assert "of its target; found" in problems(files.with_report(target=wrong))
    assert "its entry `prolora` has input" in problems(files.with_header(input="0"))
    more = {**files.output.extras, "more.x": np.ones(2)}
    added = replace(files, output=replace(files.output, extras=more))
    assert "more.x: the file has it, the report does not" in problems(added)
    gone = replace(files, output=replace(files.output, extras={}))
    assert "text_encoder.x: carried along by the report, and not in" in problems(gone)
    assert "report has counts" in problems(files.with_report(counts={"project": 9}))
