"""A pair of base models and its store: nothing is computed twice, damaged files are replaced."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import assert_same, file_of
from toy_pair import make_files

from prolora_jax.errors import UsageError
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.containers.tensors import read_tensors, write_tensors
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.matching.pairs import ModulePair, module_pairs
from prolora_jax.method.operators import METHODS, Method, ModuleOperators
from prolora_jax.method.prepared import MemoryOperators, OperatorKey
from prolora_jax.migration import pair as pair_module
from prolora_jax.migration import pair_work
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions

Models = tuple[BaseModel, BaseModel]
Modules = list[ModulePair]
SLOT = "down_blocks.0.attentions.0.transformer_blocks"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    files = make_files(tmp_path_factory.mktemp("demo"))
    return load_base_model(files.source), load_base_model(files.target)


@pytest.fixture(scope="module")
def modules(models: Models) -> Modules:
    """Some modules of the target, with the source's."""
    pairs = module_pairs(BasePair(*models).matching().pairs)
    return [pair for pair in pairs if ".attn1." in pair.target][:3]


def sources(pairs: Modules) -> dict[str, str]:
    """Source path by target path."""
    return {pair.target: pair.source for pair in pairs}


# --- files that are not good --------------------------------------------------------------------


def rewritten(
    change: Callable[[dict[str, Any], dict[str, str]], object],
) -> Callable[[Path], object]:
    """A whole safetensors file in which something is changed."""

    def spoil(path: Path) -> None:
        tensors, header = read_tensors(path, error=UsageError)
        change(tensors, header)
        write_tensors(path, tensors, header)

    return spoil


def narrower(name: str) -> Callable[[Path], object]:
    """One column, or one row, of a matrix less than the form says."""
    axis = 0 if "synthesis" in name else 1
    return rewritten(
        lambda tensors, _: tensors.update({name: np.delete(tensors[name], 0, axis=axis)})
    )


def other_form(tensors: dict[str, Any], header: dict[str, str]) -> None:
    header["left"] = header["left"].replace('"all"', '"first"').replace('"rest"', '"first"')


def cut(stop: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:stop])


def told(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Something else in the header."""
    return rewritten(lambda _, header: header.update({name: header[name].replace(old, new, 1)}))


SPOILED: dict[str, Callable[[Path], object]] = {
    "empty": cut(0),
    "no header": cut(5),
    "no numbers": cut(2000),
    "a byte short": cut(-1),
    "a byte long": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "other key": told("key", '["', '["f'),
    "no key": rewritten(lambda _, header: header.pop("key")),
    "key of numbers": rewritten(lambda _, header: header.update(key="[1, 2]")),
    "no side": rewritten(lambda _, header: header.pop("right")),
    "unknown form": told("left", '"still"', '"moving"'),
    "other form": rewritten(other_form),
    "no synthesis": rewritten(lambda tensors, _: tensors.pop("left.synthesis.0")),
    "analysis too narrow": narrower("left.analysis"),
    "synthesis too short": narrower("right.synthesis.0"),
    "analysis flat": rewritten(
        lambda tensors, _: tensors.update({"left.analysis": tensors["left.analysis"].ravel()})
    ),
    "other dtype": rewritten(
        lambda tensors, _: tensors.update(
            {"left.analysis": tensors["left.analysis"].astype(np.float16)}
        )
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_bad_file_is_prepared_again(what: str, models: Models, modules: Modules, tmp_path: Path):
    options = MigrationOptions(method="prolora")
    store = FolderStore(tmp_path)
    pair = BasePair(*models, store)
    wanted = BasePair(*models).operators(modules[0], options)
    assert_same(pair.operators(modules[0], options), wanted)
    path = file_of(tmp_path)
    (entry,) = store.operators.entries()
    SPOILED[what](path)
    assert store.operators.get(entry.key) is None
    for again in (pair, BasePair(*models, store)):
        assert_same(again.operators(modules[0], options), wanted)
    assert_same(store.operators.get(entry.key), wanted)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key":[1],"comparison":[]}'])
def test_damaged_comparison_is_computed_again(
    text: str, models: Models, modules: Modules, tmp_path: Path
):
    store, options = FolderStore(tmp_path), MigrationOptions()
    wanted = BasePair(*models, store).measure(sources(modules[:1]), options)
    (entry,) = store.operators.comparisons()
    (path,) = tmp_path.rglob("*.comparison.json")
    path.write_text(text)
    assert store.operators.comparison(entry.key) is None
    assert BasePair(*models, store).measure(sources(modules[:1]), options) == wanted
    assert store.operators.comparison(entry.key) is not None


# --- nothing is computed twice ------------------------------------------------------------------


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed, by the name of what computes it."""
    calls: list[str] = []
    for module, name in ((pair_work, "compare"), (pair_work, "prepare")):
        real = getattr(module, name)

        def counted(*args, name: str = name, real: Callable = real):
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(module, name, counted)
    real_match = pair_module.match_base_models

    def matched(*args):
        calls.append("match")
        return real_match(*args)

    monkeypatch.setattr(pair_module, "match_base_models", matched)
    return calls


def model_of(folder: Path, name: str, seeds: list[int]) -> BaseModel:
    """Self-attention blocks of four square weights; equal seeds are equal blocks."""
    tensors = {
        f"{SLOT}.{i}.attn1.{role}.weight": np.random.default_rng([seed, j]).normal(size=(16, 16))
        for i, seed in enumerate(seeds)
        for j, role in enumerate(("to_q", "to_k", "to_v", "to_out.0"))
    }
    tensors["conv_in.weight"] = np.ones((16, 4, 3, 3))
    path = folder / f"{name}.safetensors"
    write_tensors(path, {key: a.astype(np.float32) for key, a in tensors.items()})
    return load_base_model(path)


def test_equal_weights_are_compared_and_prepared_once(tmp_path: Path, work: list[str]):
    source = model_of(tmp_path, "source", [0, 1, 1])
    target = model_of(tmp_path, "target", [2, 3, 3])
    folder = tmp_path / "store"
    pair = BasePair(source, target, FolderStore(folder))
    pairs = {path: path for path in target.spec.modules if SLOT in path}
    assert len(pairs) == 12
    options = MigrationOptions(method="rotation")
    measured = pair.measure(pairs, options)
    assert set(measured) == set(pairs)
    assert work == ["compare"] * 8
    pair.prepare_operators(module_pairs(pairs), options)
    assert work[8:] == ["prepare"] * 8
    for path in pairs:
        pair.operators(ModulePair(path, path), options)
    pair.measure(pairs, options)
    # Another pair of the same weights, in another process as it were.
    again = BasePair(source, target, FolderStore(folder))
    assert again.measure(pairs, options) == measured
    again.prepare_operators(module_pairs(pairs), options)
    assert len(work) == 16
    # What a comparison does not depend on, and what it does.
    again.measure(pairs, MigrationOptions(method="prolora", min_similarity=0.1))
    assert len(work) == 16
    again.measure(pairs, MigrationOptions(pair_rank="own"))
    assert work[16:] == ["compare"] * 8
    path = next(iter(pairs))
    again.operators(
        ModulePair(path, path), MigrationOptions(method="rotation", rotation_min_cos=0.3)
    )
    assert work[24:] == ["prepare"]


def test_modules_are_matched_once(models: Models, work: list[str]):
    pair = BasePair(*models)
    similar = MigrationOptions(match_score="similarity")
    halved = MigrationOptions(match_score="similarity", basis_rank="fraction=0.5")
    asked = [
        lambda: pair.matching(),
        lambda: pair.matching("block"),
        lambda: pair.matching("module"),
        lambda: pair.matching("block", similar),
        lambda: pair.matching("block", halved),
    ]
    found = [ask() for ask in asked]
    assert work.count("match") == len(asked)
    assert [ask() for ask in asked] == found
    # Cosines of weights do not depend on ranks, nor matchings on the arm.
    assert pair.matching(options=MigrationOptions(basis_rank="fraction=0.5")) is found[0]
    assert pair.matching(options=MigrationOptions(method="rotation")) is found[0]
    assert work.count("match") == len(asked)
    assert len({id(matching) for matching in found}) == len(asked)
    assert all(a != b for a, b in combinations(found[1:], 2))  # each is what was asked for


@pytest.mark.parametrize("method", METHODS[1:])
def test_memory_and_folder_agree(method: Method, models: Models, modules: Modules, tmp_path: Path):
    options = MigrationOptions(method=method)
    memory, folder = BasePair(*models), BasePair(*models, FolderStore(tmp_path))
    assert memory.measure(sources(modules), options) == folder.measure(sources(modules), options)
    folder.prepare_operators(modules, options)
    for pair in modules:
        assert_same(folder.operators(pair, options), memory.operators(pair, options))


def test_worker_processes_prepare_the_same(
    models: Models, modules: Modules, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(pair_work, "POOL_WORTH", 0.0)
    options, seen = MigrationOptions(), []
    one, two = FolderStore(tmp_path / "one"), FolderStore(tmp_path / "two")
    for store, workers in ((one, 1), (two, 2)):
        BasePair(*models, store, workers).prepare_operators(
            modules, options, lambda *now: seen.append(now)
        )
    steps = {now[0] for now in seen}
    assert {"subspaces", "similarity", "operators"} <= steps
    assert seen.count(("operators", len(modules), len(modules))) == 2
    for entry in one.operators.entries():
        wanted = one.operators.get(entry.key)
        assert wanted is not None
        assert_same(two.operators.get(entry.key), wanted)
    assert one.operators.entries() == two.operators.entries()
    assert one.operators.comparisons() == two.operators.comparisons()


class Forgetful(MemoryOperators):
    def get(self, key: OperatorKey) -> ModuleOperators | None:
        return None


def test_store_that_keeps_nothing_is_an_error(
    models: Models, modules: Modules, monkeypatch: pytest.MonkeyPatch
):
    pair = BasePair(*models)
    monkeypatch.setattr(pair.store, "_operators", Forgetful())
    with pytest.raises(LookupError, match="were stored and are not there"):
        pair.operators(modules[0], MigrationOptions())
