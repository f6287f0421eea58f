"""Workers over one shared store: each computes nearly only its own, and all end with the same."""

import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, current_thread
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from stored import assert_same
from toy_pair import ToyFiles, make_files

from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.matching.pairs import module_pairs
from prolora_jax.method.basis import STORED
from prolora_jax.method.operators import ModuleOperators
from prolora_jax.migration import pair_work
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.subspaces import on_devices, on_host
from prolora_jax.subspaces.compute import compute_subspaces
from prolora_jax.subspaces.on_host import Others
from prolora_jax.subspaces.turns import turns

PAIRS = 40
OPTIONS = MigrationOptions(method="prolora", identical="project")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, list[Any]]]:
    """What each thread computes, by the name of what computes it."""
    done: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))

    def count(module: Any, name: str, what: Callable[..., Any]) -> None:
        real = getattr(module, name)

        def counted(*args: Any) -> Any:
            done[name][current_thread().name].append(what(*args))
            time.sleep(0.002)  # as if it were more than a toy: threads take turns
            return real(*args)

        monkeypatch.setattr(module, name, counted)

    count(on_host, "compute_one", lambda model, path, rule: model.fingerprint(path))
    count(pair_work, "compare", lambda store, weights: weights[:2])
    count(pair_work, "prepare", lambda store, key: key)
    return done


def files_of(folder: Path) -> dict[str, bytes]:
    found = [*folder.rglob("*.safetensors"), *folder.rglob("*.comparison.json")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def some_of_the_pair(toys: ToyFiles, store: FolderStore) -> list[ModuleOperators]:
    """Operators of some modules, and all that is computed for them."""
    pair = open_pair(toys.source, toys.target, store)
    modules = pair.source.spec.modules
    pairs = [
        one
        for one in module_pairs(pair.matching("auto", OPTIONS).pairs)
        if modules[one.source].kind_is("attn")
    ][:PAIRS]
    pair.measure({one.target: one.source for one in pairs}, OPTIONS)
    pair.prepare_operators(pairs, OPTIONS)
    return [pair.operators(one, OPTIONS) for one in pairs]


@pytest.mark.parametrize("told", [True, False])
def test_two_workers_share_the_work(
    toys: ToyFiles, tmp_path: Path, work: dict[str, dict[str, list[Any]]], told: bool
):
    begin = Barrier(2)

    def one(number: int) -> list[ModuleOperators]:
        share = (number, 2) if told else None
        store = FolderStore(tmp_path / str(number), shared=tmp_path / "shared", share=share)
        begin.wait()
        return some_of_the_pair(toys, store)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, range(2)))
    for name in ("compute_one", "compare", "prepare"):
        parts = [set(items) for items in work[name].values()]
        both, whole = parts[0] & parts[1], parts[0] | parts[1]
        assert len(both) <= (0.15 if told else 0.3) * len(whole) + 2
        assert min(map(len, parts)) >= 0.25 * len(whole)
    shared = files_of(tmp_path / "shared")
    assert sum(".operators." in name for name in shared) == len(whole)
    for number in range(2):
        for name, content in files_of(tmp_path / str(number)).items():
            # Of subspaces an older copy may have fewer columns than all that anybody asked for.
            assert content == shared[name] or "operators/" not in name
    for a, b in zip(*found, strict=True):
        assert_same(a, b)
    # Who comes later computes nothing at all.
    before = {name: sum(map(len, parts.values())) for name, parts in work.items()}
    late = some_of_the_pair(toys, FolderStore(tmp_path / "late", shared=tmp_path / "shared"))
    assert {name: sum(map(len, parts.values())) for name, parts in work.items()} == before
    for a, b in zip(late, found[0], strict=True):
        assert_same(a, b)


def test_what_others_have_meanwhile_is_left_out(toys: ToyFiles, tmp_path: Path):
    model = load_base_model(toys.source)
    paths = [path for path in model.spec.modules if path.endswith("attn1.to_q")][:8]
    theirs, rule = FolderStore(tmp_path / "they", shared=tmp_path / "shared"), STORED
    assert compute_subspaces(model, paths[:5], theirs) == 5
    todo = {model.fingerprint(path): (path, rule) for path in paths}
    ours = FolderStore(tmp_path / "we", shared=tmp_path / "shared")
    others = Others(ours.address, frozenset(todo))
    left = {model.fingerprint(path) for path in paths[5:]}
    mesh = Mesh(np.array(jax.devices()[:1]), ("devices",))
    assert {f for f, _ in on_host.in_turn(model, todo, others)} == left
    assert {f for f, _ in on_devices.on_devices(model, todo, mesh, others)} == left
    assert {f for f, _ in on_host.in_processes(model, todo, 2, others)} == left
    # One that is there and does not serve is everybody's own.
    assert {f for f, _ in on_host.in_turn(model, todo, Others(ours.address))} == set(todo)


def test_turns_are_shares_that_help_each_other():
    work = {f"w{i}": 20.0 ** (i % 5) for i in range(40)}
    names = {key: key for key in work}
    assert turns(work, None, names) == (sorted(work, key=lambda k: (-work[k], k)), [])
    parts = [turns(work, (i, 3), names) for i in range(3)]
    assert sorted(key for own, _ in parts for key in own) == sorted(work)
    assert {len(own) for own, _ in parts} == {13, 14}
    for own, rest in parts:
        assert sorted(own + rest) == sorted(work)
        assert [work[k] for k in own] == sorted((work[k] for k in own), reverse=True)
        assert {work[k] for k in rest[-8:]} <= {1.0, 20.0}
    assert len({tuple(turns(work, (0, 3), names)[1]) for _ in range(5)}) > 1
