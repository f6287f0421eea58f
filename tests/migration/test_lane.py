"""Files of one table on a lane of their own: the same bytes as alone, and what is odd goes alone."""

import hashlib
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from small_adapters import SPEC, write
from toy_pair import ToyFiles, make_files

from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob, FileOutcome
from prolora_jax.migration.lane import lane as lanes
from prolora_jax.migration.lane.lane import LaneBatch
from prolora_jax.migration.many import migrate_files
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions

PAIR = "0123456789abcdef"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def pair(toy: ToyFiles, tmp_path_factory: pytest.TempPathFactory) -> BasePair:
    store = FolderStore(tmp_path_factory.mktemp("store"))
    return BasePair(load_base_model(toy.source), load_base_model(toy.target), store)


def run(files: list[Path], out: Path, pair: BasePair, options: MigrationOptions, **how):
    """Outcomes by name, and digests of outputs and reports."""
    writing = Writing(pair=PAIR, **how)
    jobs = [FileJob(f, out / f.name) for f in files]
    outcomes = {o.job.source.name: o for o in migrate_files(jobs, pair, options, writing)}
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())
    }
    return outcomes, digests


@pytest.fixture
def on_lane(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that a lane has moved."""
    names: list[str] = []
    real = LaneBatch.move

    def spied(self, placed):
        good = real(self, placed)
        names.extend(read.job.source.name for read, _ in good)
        return good

    monkeypatch.setattr(LaneBatch, "move", spied)
    return names


def both(files, tmp_path, pair, options, monkeypatch, **how):
    """The same files on lanes and alone."""
    first = run(files, tmp_path / "lane", pair, options, **how)
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "FEWEST", 10**6)
        second = run(files, tmp_path / "alone", pair, options, **how)
    return first, second


def told(outcome: FileOutcome):
    assert outcome.report is not None, outcome.error
    return replace(outcome.report, input=outcome.report.input), outcome.energy


@pytest.mark.parametrize(
    "options",
    [
        MigrationOptions(),
        MigrationOptions(rank="source"),
        MigrationOptions(method="copy"),
        MigrationOptions(method="prolora", rank="3", dtype="float32", scale=0.7),
        MigrationOptions(method="rotation", rescale="norm"),
    ],
    ids=["exact", "source", "copy", "cut", "rotation"],
)
def test_outputs_and_reports_are_those_of_files_alone(pair, tmp_path, options, monkeypatch, on_lane):
    files = [
        write(tmp_path / f"{i:02}.safetensors", i, ((4,), (8,), (12,))[i % 3], alpha=(4.0, 3.0)[i % 2])
        for i in range(18)
    ]
    (outcomes, found), (alone, wanted) = both(files, tmp_path, pair, options, monkeypatch)
    assert sorted(on_lane) == [f.name for f in files]
    assert found == wanted
    assert {n: told(o) for n, o in outcomes.items()} == {n: told(o) for n, o in alone.items()}
