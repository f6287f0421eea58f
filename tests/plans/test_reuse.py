"""Plans that are used again, and base models in `inspect` and `migrate`, on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from toy_pair import ToyFiles, make_files

from prolora_jax.cli.main import run
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io.containers.tensors import read_tensors, write_tensors
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.verification.file import verify_file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("reuse"))


@pytest.fixture(autouse=True)
def store(files: ToyFiles, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROLORA_STORE", str(files.adapter.parent / "store"))
    monkeypatch.setenv("PROLORA_TRACEBACK", "1")


@pytest.fixture(scope="module")
def plan(files: ToyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan with another rank rule than the default."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as stdout:
        patch.setattr("sys.stdout", stdout)
        options = ["--dry-run", "--json", "-q", "--basis-rank", "fraction=0.5"]
        assert run([*command(files), "--workers", "1", *options]) == 0
    return path


def command(files: ToyFiles, adapter: Path | None = None) -> list[str]:
    bases = ["--source", str(files.source), "--target", str(files.target)]
    return ["migrate", str(adapter or files.adapter), *bases]


def test_a_plan_gives_what_its_options_give(files: ToyFiles, plan: Path, tmp_path: Path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert run([*command(files), "--out", str(first), "-q", "--basis-rank", "fraction=0.5"]) == 0
    assert run([*command(files), "--out", str(second), "-q", "--plan", str(plan)]) == 0
    a, b = (read_tensors(path, error=AdapterRefused)[0] for path in (first, second))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[key], b[key]) for key in a)
    report = json.loads(Path(f"{second}.report.json").read_text())
    assert report["options"]["basis_rank"] == "fraction=0.5"
    assert run(["verify", str(second), "-q"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "copy"], "found --method copy; expected prolora-full, which the plan was"),
        (["--basis-rank", "rank=3"], "found --basis-rank rank=3; expected fraction=0.5"),
    ],
)
def test_other_options_are_refused(
    files: ToyFiles, plan: Path, capsys: pytest.CaptureFixture[str], options: list, message: str
):
    assert run([*command(files), "--out", "no.safetensors", "--plan", str(plan), *options]) == 2
    assert message in capsys.readouterr().err


def test_another_pair_or_adapter_is_refused(
    files: ToyFiles, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    same = ToyFiles(files.source, files.source, files.adapter)
    again = ["--out", str(tmp_path / "out.safetensors"), "--plan", str(plan)]
    assert run([*command(same), *again]) == 2
    assert "found --target sdxl-like; expected ssd-1b-like" in capsys.readouterr().err
    tensors, metadata = read_tensors(files.adapter, error=AdapterRefused)
    gone = next(iter(tensors)).split(".")[0]
    fewer = tmp_path / "fewer.safetensors"
    kept = {k: t for k, t in tensors.items() if not k.startswith(f"{gone}.")}
    write_tensors(fewer, kept, metadata)
    assert run([*command(files, fewer), *again]) == 2
    assert "found 1 modules that the plan has and the adapter has not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["steps"][0].update(action="copy"), "found copy at .* expected project"),
        (lambda plan: plan["steps"][0]["similarity"].update(phi_left=0.31), "similarities 0.31 an"),
        (lambda plan: _skipped(plan, 0), "found nothing; expected project at similar"),
    ],
    ids=["action", "similarity", "skipped"],
)
def test_decisions_that_the_files_do_not_give_are_refused(
    files: ToyFiles, plan: Path, tmp_path: Path, change, message: str
):
    content = json.loads(plan.read_text())
    change(content)
    bad = tmp_path / "plan.json"
    bad.write_text(json.dumps(content))
    out = tmp_path / "out.safetensors"
    with pytest.raises(UsageError, match=message) as caught:
        migrate_file(files.adapter, files.source, files.target, out, plan=bad)
    assert caught.value.code is Refusal.BAD_PLAN
    assert not out.exists()


def _skipped(plan: dict, index: int) -> None:
    step = plan["steps"].pop(index)
    source_path = step["source_path"]
    plan["skipped"].append({"reason": "zero-delta", "source_path": source_path, "path": None})


def test_numbers_that_decide_nothing_are_taken_from_the_files(
    files: ToyFiles, plan: Path, tmp_path: Path
):
    content = json.loads(plan.read_text())
    content["steps"][0]["similarity"].update(k_target=-5, phi_hat_left=1e30)
    odd = tmp_path / "plan.json"
    odd.write_text(json.dumps(content))
    out = tmp_path / "out.safetensors"
    migrate_file(files.adapter, files.source, files.target, out, plan=odd)
    assert verify_file(out).ok


def test_a_file_that_is_no_plan(
    files: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bad = tmp_path / "plan.json"
    again = [*command(files), "--out", str(tmp_path / "out.safetensors"), "--plan", str(bad)]
    assert run(again) == 2
    assert "plan.json: no such file; expected a plan" in capsys.readouterr().err
    bad.write_text('{"steps": 1}')
    assert run(again) == 2
    assert "plan.json: found no plan" in capsys.readouterr().err


def test_inspect_tells_what_it_knows_of_the_base(
    files: ToyFiles, capsys: pytest.CaptureFixture[str]
):
    assert run(["inspect", str(files.adapter), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["files"]
    assert found["base"]["verdict"] == "unknown"  # the demo's nets are nobody's
    assert run(["inspect", str(files.adapter)]) == 0
    shown = capsys.readouterr().out
    assert "base model: unknown" in shown
    assert "text embedding of width 96" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: steps.append(dict(steps[0])), "found two steps that write this module"),
        (lambda steps: steps[1].update(path=steps[0]["path"]), "found two steps that write"),
        (lambda steps: steps[0].update(similarity=None), "found a projection without its sim"),
    ],
)
def test_a_plan_whose_steps_cannot_be_followed(
    files: ToyFiles, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change, message
):
    content = json.loads(plan.read_text())
    change(content["steps"])
    bad = tmp_path / "plan.json"
    bad.write_text(json.dumps(content))
    out = tmp_path / "out.safetensors"
    assert run([*command(files), "--out", str(out), "--plan", str(bad), "-q"]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
