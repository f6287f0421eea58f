"""Where all modules would take minutes some are drawn; nobody knows which, all else is checked."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import toy_pair
from migrated import Files, make_files

from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification import recompute, sampling
from prolora_jax.verification.adapter import verify_adapter
from prolora_jax.verification.by_sight import is_possible
from prolora_jax.verification.dense import recompute as recompute_dense
from prolora_jax.verification.recompute import Thoroughness
from prolora_jax.verification.result import VerifyReport
from prolora_jax.verification.sampling import LEAST, draw, new_seed
from prolora_jax.verification.without_input import verify_without_input

SEED = "5eed"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One module is drawn, and no more."""
    monkeypatch.setattr(sampling, "WORK", 0.0)
    monkeypatch.setattr(sampling, "LEAST", 1)


def verify(files: Files, seed: str | None = SEED, *, everything: bool = False) -> VerifyReport:
    bases = files.source, files.target
    how = Thoroughness(everything, seed)
    told = files.report.to_dict()
    return verify_adapter(files.output, files.source_lora, *bases, told, thoroughness=how)


def drawn(found: VerifyReport) -> set[str]:
    return {m.path for m in found.modules if m.verdict != "not-recomputed"}


def test_a_small_file_is_checked_whole():
    found = verify(make_files(), None)
    assert found.ok
    assert found.sample.seed is None
    assert found.sample.recomputed == found.sample.of == found.counts["verified"]


def test_what_was_drawn_is_said_and_drawn_again(few):
    files = make_files()
    found = verify(files, None)
    assert found.ok, found
    assert found.sample.recomputed == len(drawn(found)) == 1 < found.sample.of
    assert found.counts["not-recomputed"] == found.sample.of - 1
    assert found.sample.seed is not None
    said = f"1 of {found.sample.of} projected modules recomputed, drawn at random (--all"
    assert any(said in line for line in found.not_checked)
    assert drawn(verify(files, found.sample.seed)) == drawn(found)
    whole = verify(files, found.sample.seed, everything=True)
    assert whole.ok
    assert whole.sample.seed is None
    assert "not-recomputed" not in whole.counts
    assert [m.path for m in whole.modules] == [m.path for m in found.modules]


def test_nobody_knows_what_is_drawn(few):
    files = make_files()
    seeds = [new_seed() for _ in range(40)]
    assert len(set(seeds)) == 40
    costs = {f"m{i}": 1.0 for i in range(5)}
    found = Counter(p for seed in seeds for p in draw(costs, frozenset(), "file", seed))
    assert found.keys() == costs.keys()
    # Another file, another draw, with the same word.
    assert len({min(draw(costs, frozenset(), f"{i}", SEED)) for i in range(40)}) > 1
    words = {verify(files, None).sample.seed for _ in range(3)}
    assert len(words) == 3


def test_a_draw_ends_with_the_first_module_that_is_too_much():
    costs = {f"m{i}": sampling.WORK / 10 for i in range(100)}
    assert len(draw(costs, frozenset(), "file", SEED)) == 10
    large = {f"m{i}": 2 * sampling.WORK for i in range(100)}
    assert len(draw(large, frozenset(), "file", SEED)) == LEAST
    assert {"m7", "m8"} <= draw(large, frozenset({"m7", "m8"}), "file", SEED)
    assert draw({"a": sampling.WORK}, frozenset(), "file", SEED) == {"a"}


def other(files: Files) -> tuple[int, str]:
    """Place and path of a projected module that is not drawn."""
    seen = drawn(verify(files))
    places = enumerate(files.report.modules)
    return next((i, m.path) for i, m in places if m.path not in seen and m.phi_left is not None)


def test_an_update_of_a_drawn_module_is_compared(few):
    files = make_files()
    (path,) = drawn(verify(files))
    place = next(i for i, m in enumerate(files.output.modules) if m.path == path)
    turned = files.with_module(place, down=-files.output.modules[place].down)
    # The file is another one, and so is the draw: the word decides until the module is drawn.
    found = [verify(turned, f"{n}") for n in range(40)]
    assert {f.ok for f in found if path in drawn(f)} == {False}
    assert any(path in drawn(f) for f in found)
    assert not verify(turned, everything=True).ok


CHANGES = {
    "norm_out": lambda m: {"norm_out": m.norm_out * 1.5},
    "norm_in": lambda m: {"norm_in": m.norm_in * 1.01},
    "rank_in": lambda m: {"rank_in": m.rank_in + 1},
    "rank_out": lambda m: {"rank_out": m.rank_out + 1},
    "kept": lambda m: {"kept": 1.5},
    "energies": lambda m: {"energies": (0.5, 0.5, 0.5, 0.0)},
    "phi": lambda m: {"phi_left": 1.5},
    "hat": lambda m: {"phi_hat_left": m.phi_hat_left - 0.1},
    "no phi": lambda m: {"phi_left": None},
    "k": lambda m: {"k_source": 10**6},
    "below the gate": lambda m: {"phi_left": 0.0, "phi_hat_left": None},
    "flag": lambda m: {"flags": ("weak-match",)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_numbers_of_modules_that_are_not_drawn_are_checked(few, name: str):
    files = make_files()
    place, _ = other(files)
    changed = files.with_record(place, **CHANGES[name](files.report.modules[place]))
    assert not verify(changed).ok


def test_factors_of_modules_that_are_not_drawn_are_checked(few):
    files = make_files()
    place, path = other(files)
    index = next(i for i, m in enumerate(files.output.modules) if m.path == path)
    down = files.output.modules[index].down
    for changed in (down * 1.5, down * np.nan, down[:, :-1], down.astype(np.float16)):
        assert not verify(files.with_module(index, down=changed)).ok
    gone = tuple(m for m in files.output.modules if m.path != path)
    assert not verify(replace(files, output=replace(files.output, modules=gone))).ok
    records = tuple(m for i, m in enumerate(files.report.modules) if i != place)
    assert not verify(files.with_report(modules=records).counted()).ok


def test_a_record_that_cannot_be_is_recomputed(few):
    files = make_files()
    place, path = other(files)
    found = verify(files.with_record(place, phi_left=1.5))
    assert path in drawn(found)


def test_a_similarity_that_can_be():
    told = make_files().report.modules[0].similarity
    assert told is not None
    assert is_possible(told, (12, 12))
    assert not is_possible(None, (12, 12))
    assert not is_possible(replace(told, k_source=13), (12, 12))
    assert not is_possible(replace(told, phi_right=-0.1), (12, 12))
    assert not is_possible(replace(told, phi_hat_right=None), (12, 12))
    assert not is_possible(replace(told, phi_right=float("nan")), (12, 12))


def test_without_the_input_modules_are_drawn_too(few):
    files = make_files()
    told = files.report.to_dict()
    bases = files.source, files.target
    how = Thoroughness(seed=SEED)
    found = verify_without_input(files.output, *bases, told, ["gone"], thoroughness=how)
    assert found.verdict == "not-compared", found
    assert found.sample.recomputed == 1 < found.sample.of


@pytest.mark.parametrize("clustered", [False, True])
def test_a_recomputation_comes_back_from_a_worker_as_it_is(clustered: bool):
    rng = np.random.default_rng(0)
    weights = [np.eye(8) if clustered else rng.normal(size=(8, 8)) for _ in range(2)]
    delta = rng.normal(size=(8, 8))
    found = recompute_dense("prolora", weights[0], weights[1], delta, ("rank", 3.0))
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.delta_t, found.delta_t)
    assert (found.certain is not None) == found.undetermined == clustered
    if found.certain is not None:
        np.testing.assert_array_equal(again.certain.part(delta), found.certain.part(delta))


def test_models_in_memory_are_recomputed_here(monkeypatch: pytest.MonkeyPatch):
    files = make_files()
    pairs = [recompute.HeavyModule(m.path, m.path, m) for m in files.source_lora.modules[:1]]
    monkeypatch.setattr(recompute, "WORTH_A_POOL", 0.0)
    monkeypatch.setattr(recompute, "run_in_processes", None)
    bases = files.source, files.target
    (found,) = recompute.recompute_all(pairs, *bases, files.report.options, 2)
    assert found[0].path == pairs[0].path


def test_base_models_on_disk_are_opened_by_worker_processes(tmp_path, monkeypatch):
    toys = toy_pair.make_files(tmp_path)
    bases = load_base_model(toys.source), load_base_model(toys.target)
    lora = load_adapter(toys.adapter, bases[0].spec)
    paths = [p for p in bases[1].spec.modules if p in bases[0].spec.modules]
    given = {m.path: m for m in lora.modules}
    pairs = [recompute.HeavyModule(p, p, given[p]) for p in paths if p in given][:3]
    here = list(recompute.recompute_all(pairs, *bases, MigrationOptions(), 1))
    monkeypatch.setattr(recompute, "WORTH_A_POOL", 0.0)
    there = list(recompute.recompute_all(pairs, *bases, MigrationOptions(), 2))
    assert len(here) == len(there) == 3
    updates = {pair.path: dense.delta_t for pair, dense in here}
    for pair, dense in there:
        np.testing.assert_array_equal(dense.delta_t, updates[pair.path])
