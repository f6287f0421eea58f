"""`verify_adapter` on hand-made files: right ones pass, and each wrong one breaks one thing.

The right files come from `reference`: nothing here depends on the code that `verify` is for.
"""

from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import pytest
import reference
from migrated import DTYPES, Exact, Files, flags_of, make_files, similarity_of, stored

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action, PlanStep, Skip, SkippedModule
from prolora_jax.plans.report import ModuleReport
from prolora_jax.verification.adapter import verify_adapter
from prolora_jax.verification.evidence import similarity_evidence

# --- right files --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", reference.ARMS)
def test_right_output_is_verified(method, dtype):
    found = make_files(dtype, method=method).verify()
    assert found.ok
    assert found.problems == ()
    assert found.counts == {"verified": 5}
    actions = ["copy" if method == "copy" else "project"] * 4
    assert [m.action for m in found.modules] == actions + (
        ["copy"] if method == "copy" else ["skip"]
    )
    assert found.worst_error <= {4: 1e-6, 2: 8e-3}[np.dtype(dtype).itemsize]


@pytest.mark.parametrize("rank", ["source", "2", "energy=0.9"])
@pytest.mark.parametrize("rescale", ["none", "norm"])
@pytest.mark.parametrize("scale", [1.0, -0.01, 100.0])
def test_right_output_with_rank_and_scale_is_verified(rank, rescale, scale):
    found = make_files(rank=rank, rescale=rescale, scale=scale).verify()
    assert found.ok, found
    assert found.worst_error < 1e-6  # what the cut itself costs is not in it


@pytest.mark.parametrize("gate_sides", ["both", "left"])
@pytest.mark.parametrize("gate", ["phi", "corrected"])
def test_right_decisions_are_verified(gate, gate_sides):
    found = make_files(gate=gate, gate_sides=gate_sides, min_similarity=0.6).verify()
    assert found.ok, found


def test_copy_below_the_gate_is_verified():
    found = make_files(below="copy").verify()
    assert found.ok, found
    assert [m.action for m in found.modules] == ["project"] * 4 + ["copy"]


def test_scale_zero_is_verified():
    assert make_files(scale=0.0).verify().ok


def test_identical_weights_are_copied():
    files = make_files()
    files = files.with_target(**{"unet.a": files.source.weights["unet.a"]})
    before, told = files.source_lora.modules[0], files.report.modules[0]
    step = PlanStep("unet.a", "unet.a", Action.COPY, None, ("identical",))
    record = ModuleReport.of(step, (3, 3), (told.norm_in, told.norm_in))
    files = replace(
        files, report=replace(files.report, modules=(record, *files.report.modules[1:]))
    )
    files = files.with_module(0, down=before.down, up=before.up, alpha=before.alpha).counted()
    found = files.verify()
    assert found.ok, found


def test_equal_singular_values_are_undetermined():
    files = make_files().with_target(**{"unet.a": np.eye(12, dtype=np.float32)})
    flagged = files.with_record(0, flags=("clustered-cut",))
    found = flagged.verify()
    assert found.ok, found
    assert found.modules[0].verdict == "undetermined"
    assert found.counts == {"verified": 4, "undetermined": 1}
    assert any(line.startswith("unet.a: 100% of its update") for line in found.not_checked)
    assert "unet.a: report has flags" in problems_of(files.with_record(0, flags=()))


def test_undetermined_module_is_held_to_what_every_cut_has_in_common():
    spectrum = np.array([9.0, 8, 7, 6, 5, 4, 4, 3, 2.5, 2, 1.5, 1])  # cut at 6, between equal ones
    source = make_files()
    u, _, vt = np.linalg.svd(source.source.matrix("unet.a").astype(np.float64))
    clustered = ((u * spectrum) @ vt).astype(np.float64)
    files = source.with_target(**{"unet.a": clustered})
    pair = reference.pair_of_weights(source.source.matrix("unet.a"), clustered, 6, 6)
    delta = source.delta("unet.a")
    right = stored("unet.a", reference.project("prolora-full", pair, delta), (12, 12), "f4", 3)
    files = files.with_module(0, down=right.down, up=right.up)
    told = similarity_of(pair, 6, (12, 12))
    files = files.with_record(
        0,
        phi_left=told.phi_left,
        phi_right=told.phi_right,
        phi_hat_left=told.phi_hat_left,
        phi_hat_right=told.phi_hat_right,
        flags=flags_of(told, (source.source.matrix("unet.a"), clustered), 6, False),
        norm_out=float(np.linalg.norm(right.up @ right.down)),
    )
    files = replace(files, target=Exact(files.target.spec, files.target.weights))
    found = files.verify()
    assert found.ok, found
    assert found.modules[0].verdict == "undetermined"
    noise = np.random.default_rng(0).standard_normal(right.up.shape).astype(np.float32)
    wrong = files.with_module(0, up=right.up + 0.3 * noise)
    assert "unet.a: differs from the recomputed update" in problems_of(wrong)
    assert "unet.a: report has norm_out" in problems_of(files.with_record(0, norm_out=99.0))
    assert "unet.a: report has phi_left" in problems_of(files.with_record(0, phi_left=1.5))
    assert "unet.a: report has energies" in problems_of(
        files.with_record(0, energies=(0.25, 0.25, 0.25, 0.25))
    )


def test_report_is_json_and_progress_is_told():
    files, calls = make_files(), []
    found = verify_adapter(
        files.output,
        files.source_lora,
        files.source,
        files.target,
        files.report.to_dict(),
        lambda *call: calls.append(call),
    )
    assert calls == [("verify", i, 5) for i in range(1, 6)]
    assert msgspec.json.decode(msgspec.json.encode(found))["ok"] is True


# --- wrong files --------------------------------------------------------------------------------


def problems_of(files: Files) -> str:
    """All problems in one string; there must be some."""
    found = files.verify()
    problems = [*found.problems, *(f"{m.path}: {p}" for m in found.modules for p in m.problems)]
    assert not found.ok
    assert problems
    return "\n".join(problems)


@pytest.mark.parametrize("index", range(4))
def test_wrong_scale(index):
    assert "differs from the recomputed update" in problems_of(
        make_files().with_module(index, alpha=6.1)
    )


def test_swapped_modules():
    files = make_files()
    a, b = files.output.modules[:2]
    files = files.with_module(0, down=b.down, up=b.up).with_module(1, down=a.down, up=a.up)
    found = problems_of(files)
    assert "unet.a: differs" in found
    assert "unet.b: differs" in found


def test_dropped_module():
    files = make_files()
    files = replace(files, output=replace(files.output, modules=files.output.modules[1:]))
    assert "unet.a: the report has it, the file does not" in problems_of(files)


def test_dropped_from_report_and_file():
    files = make_files()
    report = replace(files.report, modules=files.report.modules[1:])
    output = replace(files.output, modules=files.output.modules[1:])
    found = problems_of(replace(files, report=report, output=output).counted())
    assert "unet.a: is missing in the report, which should say project" in found
    assert "of its source; found" in found  # of the weights that should have been used


@pytest.mark.parametrize("reason", list(Skip))
def test_dropped_and_listed_as_skipped(reason):
    files, places = make_files(), {"unet.a": "unet.a"}
    similarity = files.report.modules[0].similarity
    for path in (*places, None):
        listed = SkippedModule(reason, "unet.a", path, similarity)
        report = replace(
            files.report,
            modules=files.report.modules[1:],
            skipped=(*files.report.skipped, listed),
        )
        output = replace(files.output, modules=files.output.modules[1:])
        assert "unet.a" in problems_of(replace(files, report=report, output=output).counted())


@pytest.mark.parametrize("arm", ["subspace", "null-space", "prolora-full", "rotation", "copy"])
def test_another_arm(arm):
    files, other = make_files(method="prolora"), make_files(method=arm)
    assert problems_of(replace(files, output=other.output)).count("differs") == 4


@pytest.mark.parametrize(("dtype", "noise"), list(zip(DTYPES, (2e-4, 3e-3, 4e-2), strict=True)))
@pytest.mark.parametrize("index", range(4))
def test_noise_above_tolerance(dtype, noise, index):
    files = make_files(dtype)
    up = files.output.modules[index].up.astype(np.float64) * (1 + noise)
    assert "differs" in problems_of(files.with_module(index, up=up.astype(dtype)))


def test_noise_beside_a_cut_rank():
    files = make_files(rank="2")
    up = files.output.modules[0].up[:, ::-1].copy()
    assert "differs" in problems_of(files.with_module(0, up=up))


def test_rank_above_the_one_asked_for():
    files, exact = make_files(rank="2"), make_files()
    first = exact.output.modules[0]
    files = files.with_module(0, down=first.down, up=first.up)
    assert "unet.a: has rank 3, asked for was 2" in problems_of(files)


def test_not_a_number():
    files = make_files()
    up = files.output.modules[2].up.copy()
    up[0, 0] = np.nan
    assert "unet.wide: differs from the recomputed update by nan" in problems_of(
        files.with_module(2, up=up)
    )


def test_wrong_shape():
    files = make_files()
    narrow = files.output.modules[0].down[:, :-1]
    assert "unet.a: has shapes" in problems_of(files.with_module(0, down=narrow))


def test_module_that_nobody_asked_for():
    files = make_files()
    extra = replace(files.output.modules[0], path="unet.more")
    files = replace(files, output=replace(files.output, modules=(*files.output.modules, extra)))
    assert problems_of(files) == "unet.more: the file has it, the report has no such module"


def test_skipped_module_in_the_file():
    files = make_files()
    stranger = files.source_lora.modules[-1]
    files = replace(files, output=replace(files.output, modules=(*files.output.modules, stranger)))
    assert "unet.stranger: the file has it, the report skipped it (below-th" in problems_of(files)


def test_module_twice():
    files = make_files()
    twice = (*files.output.modules, files.output.modules[0])
    files = replace(files, output=replace(files.output, modules=twice))
    assert problems_of(files) == "out: a module is there twice"


def test_gate_left_open():
    files = make_files(min_similarity=-1.0)
    assert files.verify().ok
    found = problems_of(files.with_options(min_similarity=0.7))
    assert "unet.stranger: report says project, replanned: skip (below-threshold)" in found


@pytest.mark.parametrize("reason", [Skip.BELOW_THRESHOLD, Skip.NOTHING_LEFT])
def test_skipped_for_no_reason(reason):
    files = make_files()
    report = replace(
        files.report,
        modules=files.report.modules[1:],
        skipped=(*files.report.skipped, SkippedModule(reason, "unet.a", "unet.a")),
    )
    output = replace(files.output, modules=files.output.modules[1:])
    found = problems_of(replace(files, report=report, output=output).counted())
    said = {
        Skip.BELOW_THRESHOLD: "unet.a: report says skip (below-threshold), replanned: project",
        Skip.NOTHING_LEFT: "unet.a: skipped as nothing-left, but a norm of",
    }
    assert said[reason] in found


def test_copied_for_no_reason():
    copied = make_files(method="copy").output.modules[0]
    files = make_files().with_record(0, action=Action.COPY)
    files = files.with_module(0, down=copied.down, up=copied.up)
    assert "unet.a: report says copy, replanned: project" in problems_of(files)
    assert "unet.a: report says copy" in problems_of(files.with_options(below="copy"))


def test_copied_as_identical_but_is_not():
    copied = make_files(method="copy").output.modules[0]
    files = make_files().with_record(0, action=Action.COPY, flags=("identical",))
    files = files.with_module(0, down=copied.down, up=copied.up)
    assert "unet.a: report says copy, replanned: project" in problems_of(files)


def test_projected_by_copy():
    files = make_files(method="copy").with_record(0, action=Action.PROJECT)
    assert "unet.a: report says project, replanned: copy" in problems_of(files)


@pytest.mark.parametrize("field", ["phi_left", "phi_right"])
def test_report_with_another_similarity(field):
    assert f"unet.a: report has {field} 0.9" in problems_of(
        make_files().with_record(0, **{field: 0.9})
    )


def test_report_with_another_rank():
    assert problems_of(make_files().with_record(0, k_source=5)) == (
        "unet.a: report has k_source 5, recomputed 6"
    )


def test_report_with_another_source():
    other = problems_of(make_files().with_record(0, source_path="unet.b"))
    assert "unet.a: report says project, but no name, shape or weight leads there" in other
    assert "the input has no module unet.z" in problems_of(
        make_files().with_record(0, source_path="unet.z")
    )


@pytest.mark.parametrize("extras", [{}, {"text_encoder.x": np.arange(3.0) + 1}])
def test_extras_lost_or_changed(extras):
    files = make_files()
    files = replace(files, output=replace(files.output, extras=extras))
    assert "text_encoder.x: carried along by the report, but not as in" in problems_of(files)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("scored", [False, True])
def test_a_weight_that_is_not_finite_is_named(number: float, scored: bool):
    files = make_files()
    weight = files.target.weights["unet.b"].copy()
    weight[3, 4] = number
    target = replace(files.target, weights=files.target.weights | {"unet.b": weight})
    paths, options = ["unet.a", "unet.b"], MigrationOptions()
    check = partial(similarity_evidence, files.source, target, paths, paths, options)
    message = r"toy: unet\.b: found NaN or infinite numbers"
    with pytest.raises(BaseModelError, match=message) as found:
        check() if scored else replace(files, target=target).verify()
    assert found.value.code is Refusal.NON_FINITE


def test_not_a_report():
    files = make_files()
    with pytest.raises(UsageError, match="out: not a migration report .* Migrate again"):
        verify_adapter(files.output, files.source_lora, files.source, files.target, {"a": 1})
