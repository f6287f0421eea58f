"""The jobs of commands from Python: the same files, the same refusals."""

import json
from pathlib import Path

import pytest
from toy_pair import ToyFiles, make_files

import prolora_jax as pl
from prolora_jax.cli.main import run
from prolora_jax.errors import Refusal

COPY = pl.MigrationOptions(method="copy")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("toys"))


def test_the_command_and_the_function_write_the_same(toys: ToyFiles, tmp_path: Path):
    bases = ["--source", str(toys.source), "--target", str(toys.target)]
    said = tmp_path / "a" / "out.safetensors"
    command = ["migrate", str(toys.adapter), *bases, "--out", str(said), "--method", "copy"]
    assert run([*command, "-q", "--store", str(tmp_path / "store")]) == 0
    source, target = pl.load_base_model(toys.source), pl.load_base_model(toys.target)
    called = tmp_path / "b" / "out.safetensors"
    done = pl.migrate_file(toys.adapter, source, target, called, COPY)
    assert done.output == called
    assert called.read_bytes() == said.read_bytes()
    report = Path(f"{said}.report.json").read_text()
    assert done.report_file.read_text() == report
    assert json.loads(done.report.to_json()) == json.loads(report)
    assert pl.verify_file(called).ok


def test_a_plan_is_made_and_followed(toys: ToyFiles, tmp_path: Path):
    plan = pl.plan_file(toys.adapter, toys.source, toys.target, COPY)
    (tmp_path / "plan.json").write_text(plan.to_json())
    out = tmp_path / "out.safetensors"
    given = (toys.adapter, toys.source, toys.target)
    done = pl.migrate_file(*given, out, COPY, plan=tmp_path / "plan.json")
    assert [m.path for m in done.report.modules] == [step.path for step in plan.steps]
    with pytest.raises(pl.UsageError, match="output exists"):
        pl.migrate_file(*given, out, COPY)
    other = pl.MigrationOptions(method="rotation")
    with pytest.raises(pl.UsageError, match="found --method rotation"):
        pl.plan_file(*given, other, plan=tmp_path / "plan.json")


def test_several_adapters_are_one_only_when_they_are_merged(toys: ToyFiles, tmp_path: Path):
    out, bases = tmp_path / "out.safetensors", (toys.source, toys.target)
    for inputs in ([], [toys.adapter, toys.adapter]):
        with pytest.raises(pl.UsageError, match=f"found {len(inputs)} adapters; expected one"):
            pl.migrate_file(inputs, *bases, out, COPY)
    assert not out.exists()
    twice = [toys.adapter, toys.adapter]
    done = pl.migrate_file(twice, *bases, out, COPY, merge=True, weights=(0.5, 2.0))
    assert [part.weight for part in done.report.parts] == [0.5, 2.0]
    assert pl.verify_file(out).ok


def test_a_catalogs_output_is_a_folder(toys: ToyFiles):
    with pytest.raises(pl.UsageError, match="found a file; expected a folder") as caught:
        pl.CatalogJob((toys.adapter,), toys.adapter)
    assert caught.value.code is Refusal.OUTPUT_EXISTS


def test_two_models_are_asked_for_a_pair(toys: ToyFiles):
    with pytest.raises(pl.UsageError, match="expected two base models.*found 1"):
        list(pl.build_subspaces([toys.source], pl.MemoryStore(), for_pair=True))
