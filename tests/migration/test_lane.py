"""Files of one table on a lane of their own: the same bytes as alone; what is odd goes alone."""

import hashlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from small_adapters import SPEC, write
from toy_pair import ToyFiles, make_files

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration import many
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob, FileOutcome
from prolora_jax.migration.lane import lane as lanes
from prolora_jax.migration.lane.lane import LaneBatch
from prolora_jax.migration.many import migrate_files
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action, MigrationPlan, PlanStep

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
def test_outputs_and_reports_are_those_of_files_alone(
    pair, tmp_path, options, monkeypatch, on_lane
):
    files = [
        write(
            tmp_path / f"{i:02}.safetensors", i, ((4,), (8,), (12,))[i % 3], alpha=(4.0, 3.0)[i % 2]
        )
        for i in range(24)
    ]
    (outcomes, found), (alone, wanted) = both(files, tmp_path, pair, options, monkeypatch)
    assert sorted(on_lane) == [f.name for f in files]
    assert found == wanted
    assert {n: told(o) for n, o in outcomes.items()} == {n: told(o) for n, o in alone.items()}


def test_energies_are_products(monkeypatch):
    """As those of lanes: `norm ** 2` of a Python number is rounded otherwise now and then."""
    norms = np.random.default_rng(0).uniform(0.01, 10, 20_000)
    odd = [norm for norm in norms.tolist() if norm**2 != norm * norm]
    ones = np.ones((1, 1), np.float32)
    adapter = Adapter((LoraModule("a", ones, ones, 1.0),), "kohya-ldm")
    steps = (PlanStep("a", "a", Action.COPY, None, ()),)
    plan = MigrationPlan(MigrationOptions(), "one", "other", steps, (), ())
    for norm in [*odd, *norms[:5].tolist()]:
        monkeypatch.setattr(many, "norm_of", lambda module, norm=norm: norm)
        rounded_once = float(Fraction(norm) ** 2)
        assert many.energy_that_moves(adapter, plan) == (rounded_once, rounded_once)


def _with_zeros(module):
    """Half of its columns are zero, as of a file that was filled up to one rank."""
    up, half = module.up.copy(), module.rank // 2
    up[:, half:] = 0
    return replace(module, up=up)


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        ((8,), MigrationOptions(rank="energy=0.7")),
        ((8, 4), MigrationOptions(method="prolora", rank="energy=0.7")),
        ((8, 4), MigrationOptions(rank="source", uniform_rank=True)),
        ((8, 4), MigrationOptions()),
    ],
    ids=["energy", "energy-of-mixed", "uniform", "mixed"],
)
def test_ranks_that_depend_on_the_numbers(pair, tmp_path, monkeypatch, on_lane, ranks, options):
    files = [write(tmp_path / f"{i}.safetensors", i, ranks) for i in range(8)]
    changed(files[3], _with_zeros)
    (outcomes, found), (alone, wanted) = both(files, tmp_path, pair, options, monkeypatch)
    assert sorted(on_lane) == [f.name for f in files]
    assert found == wanted
    assert {n: told(o) for n, o in outcomes.items()} == {n: told(o) for n, o in alone.items()}
    made = {m.rank_out for o in outcomes.values() if o.report for m in o.report.modules}
    assert len(made) > 1


@pytest.mark.parametrize("rank", ["budget=40000", "mean=3"])
def test_ranks_that_depend_on_other_modules_go_alone(pair, tmp_path, on_lane, rank):
    files = [write(tmp_path / f"{i}.safetensors", i, (8,)) for i in range(8)]
    outcomes, _ = run(files, tmp_path / "out", pair, MigrationOptions(rank=rank))
    assert on_lane == []
    assert [o.error for o in outcomes.values()] == [None] * 8


@pytest.mark.parametrize("format", ["kohya-diffusers", "diffusers", "peft"])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
def test_other_formats_and_dtypes(pair, tmp_path, monkeypatch, on_lane, format, dtype):
    files = [
        write(tmp_path / f"{i}.safetensors", i, (8,), alpha=8.0, dtype=dtype, format=format)
        for i in range(8)
    ]
    (_, found), (_, wanted) = both(files, tmp_path, pair, MigrationOptions(), monkeypatch)
    assert len(on_lane) == 8
    assert found == wanted


def with_header(path: Path, strings: dict[str, str]) -> Path:
    adapter = load_adapter(path)
    save_adapter(adapter, path, base=SPEC, metadata=strings, overwrite=True)
    return path


@pytest.mark.parametrize("strip", [False, True])
def test_header_strings_and_their_hashes(pair, tmp_path, monkeypatch, on_lane, strip):
    """Of a trainer's files, each with strings of its own."""
    hashes = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8, "license": "mit"}
    scale = {"ss_network_dim": "8", "ss_network_alpha": "8.0", "ss_base_model_version": "sdxl"}
    files = [
        with_header(
            write(tmp_path / f"{i}.safetensors", i, (8,), alpha=8.0),
            hashes | scale | {"ss_output_name": f"number {i}", "modelspec.title": f"title {i}"},
        )
        for i in range(8)
    ]
    options = MigrationOptions(method="copy")
    (_, found), (_, wanted) = both(
        files, tmp_path, pair, options, monkeypatch, strip_metadata=strip
    )
    assert len(on_lane) == 8
    assert found == wanted


def changed(path: Path, change) -> Path:
    """An adapter with other numbers in its first module."""
    adapter = load_adapter(path)
    first, *others = adapter.modules
    save_adapter(
        replace(adapter, modules=(change(first), *others)), path, base=SPEC, overwrite=True
    )
    return path


def _not_finite(module):
    up = module.up.copy()
    up[0, 0] = np.nan
    return replace(module, up=up)


ODD = {
    "not-finite": _not_finite,
    "zero": lambda module: replace(module, up=np.zeros_like(module.up)),
    "alpha-zero": lambda module: replace(module, alpha=0.0),
    "other-alpha": lambda module: replace(module, alpha=2.0),
    "tiny": lambda module: replace(module, up=module.up * np.float16(2.0**-20)),
    "large": lambda module: replace(module, alpha=1e7),
}


@pytest.mark.parametrize("method", ["copy", "prolora-full"])
def test_odd_files_go_alone_and_harm_no_other(pair, tmp_path, monkeypatch, on_lane, method):
    files = [write(tmp_path / f"{i:02}.safetensors", i, (8,), alpha=4.0) for i in range(14)]
    for place, change in enumerate(ODD.values()):
        changed(files[1 + 2 * place], change)
    options = MigrationOptions(method=method, rank="source")
    (outcomes, found), (alone, wanted) = both(files, tmp_path, pair, options, monkeypatch)
    assert found == wanted
    codes = {name: o.error and (o.error.code, str(o.error)) for name, o in outcomes.items()}
    assert codes == {name: o.error and (o.error.code, str(o.error)) for name, o in alone.items()}
    assert [code for code in codes.values() if code is not None] != []
    assert {*on_lane} >= {f.name for f in files[::2]}


def test_files_that_vanish_and_files_that_are_cut_off(pair, tmp_path, monkeypatch, on_lane):
    files = [write(tmp_path / f"{i:02}.safetensors", i, (8,)) for i in range(10)]
    content = files[3].read_bytes()
    files[3].write_bytes(content[:-100])
    jobs = [FileJob(f, tmp_path / "out" / f.name, rank=8, table="same") for f in files]
    files[5].unlink()
    outcomes = {
        o.job.source.name: o.error
        for o in migrate_files(jobs, pair, MigrationOptions(), Writing(pair=PAIR))
    }
    assert {name for name, error in outcomes.items() if error} == {
        "03.safetensors",
        "05.safetensors",
    }
    assert len(on_lane) == 8


def test_a_run_that_nobody_waits_for_ends(pair, tmp_path, monkeypatch, on_lane):
    monkeypatch.setattr(lanes, "_places", lambda *_: 8)
    files = [write(tmp_path / f"{i:02}.safetensors", i, (8,)) for i in range(48)]
    jobs = [FileJob(f, tmp_path / "out" / f.name) for f in files]
    outcomes = migrate_files(jobs, pair, MigrationOptions(), Writing(pair=PAIR))
    assert next(outcomes).error is None
    del outcomes  # which waits for all threads
    assert 8 <= len(on_lane) < 48
    assert len(list((tmp_path / "out").glob("*.safetensors"))) < 48


def test_an_output_of_others_is_left_as_it_is(pair, tmp_path, on_lane):
    files = [write(tmp_path / f"{i:02}.safetensors", i, (8,)) for i in range(8)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "04.safetensors").write_bytes(b"somebody's")
    outcomes, _ = run(files, tmp_path / "out", pair, MigrationOptions(method="copy"))
    refused = [name for name, o in outcomes.items() if o.error is not None]
    assert refused == ["04.safetensors"]
    assert (tmp_path / "out" / "04.safetensors").read_bytes() == b"somebody's"
    assert len(on_lane) == 7


def test_batches_that_fail_are_told_and_hold_up_nobody(pair, tmp_path, monkeypatch):
    """As many of them as there are rooms, and one more."""
    count = 8 * (lanes.ROOMS + 1)
    files = [write(tmp_path / f"{i:02}.safetensors", i, (8,)) for i in range(count)]
    monkeypatch.setattr(lanes, "move", broken)
    monkeypatch.setattr(lanes, "_places", lambda *_: 8)
    jobs = [FileJob(f, tmp_path / "out" / f.name) for f in files]
    outcomes = list(migrate_files(jobs, pair, MigrationOptions(), Writing(pair=PAIR)))
    assert len(outcomes) == len(files)
    assert [str(o.error) for o in outcomes if "the device is gone" not in str(o.error)] == []


def broken(*_):
    raise MemoryError("the device is gone")


def test_operators_are_prepared_for_all_files_at_once(toy, tmp_path, on_lane):
    """Not one by one when they are asked for: worker processes share that, and progress is told."""
    fresh = BasePair(load_base_model(toy.source), load_base_model(toy.target))
    files = [write(tmp_path / f"{i:02}.safetensors", i, (8,)) for i in range(8)]
    jobs = [FileJob(f, tmp_path / "out" / f.name) for f in files]
    told: list[tuple[str, int, int]] = []
    how = Writing(pair=PAIR), lambda *progress: told.append(progress)
    assert all(o.error is None for o in migrate_files(jobs, fresh, MigrationOptions(), *how))
    assert len(on_lane) == 8
    steps = [progress for progress in told if progress[0] == "operators"]
    assert steps[-1][1] == steps[-1][2] == len(steps) > 8


@pytest.mark.parametrize("method", ["copy", "prolora-full"])
def test_what_is_made_takes_the_place_of_what_was_read(pair, tmp_path, monkeypatch, method):
    """So that a batch needs no memory of its own, and a catalog's does not grow."""
    elsewhere, real = [], LaneBatch.move

    def move(self, placed):
        good = real(self, placed)
        read = [a for s in self.batch.room.factors.values() for a in (s.up, s.down)]
        made = [a for factors in self.batch.factors.values() for a in factors]
        elsewhere.append(sum(not any(np.shares_memory(a, b) for b in read) for a in made))
        return good

    monkeypatch.setattr(LaneBatch, "move", move)
    files = [write(tmp_path / f"{i}.safetensors", i, (8,), alpha=3.0) for i in range(8)]
    run(files, tmp_path / "out", pair, MigrationOptions(method=method))
    assert elsewhere == [0]
