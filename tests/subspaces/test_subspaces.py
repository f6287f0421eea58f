"""Computing, storing and pruning bases: in turn, in worker processes, interrupted, damaged."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import reference
from toy_pair import make_files

from prolora_jax.cli.main import run
from prolora_jax.errors import BaseModelError
from prolora_jax.io.atomic import TEMPORARY_SUFFIX
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.containers.tensors import write_tensors
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.method.basis import Basis, BasisRule
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.subspaces import compute as module
from prolora_jax.subspaces.compute import compute_subspaces, load_or_compute
from prolora_jax.subspaces.store import MemoryStore

SLOT = "down_blocks.0.attentions.0.transformer_blocks"


def make_model(folder: Path, blocks: int = 2, dim: int = 24, bad: bool = False) -> BaseModel:
    rng = np.random.default_rng(0)
    tensors = {
        f"{SLOT}.{i}.attn{a}.to_{r}.weight": rng.normal(size=(dim, dim + 8 * (a - 1)))
        for i in range(blocks)
        for a in (1, 2)
        for r in "qkv"
    }
    tensors["conv_in.weight"] = rng.normal(size=(dim, 4, 3, 3))
    if bad:
        next(iter(tensors.values()))[0, 0] = np.nan
    path = folder / "model.safetensors"
    write_tensors(path, {key: a.astype(np.float32) for key, a in tensors.items()})
    return load_base_model(path)


def attention(model: BaseModel) -> list[str]:
    return [path for path, m in model.spec.modules.items() if m.kind_is("attn")]


def test_worker_processes_give_the_same_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make_model(tmp_path)
    monkeypatch.setattr(module, "POOL_WORTH", 0.0)
    one, two = MemoryStore(), FolderStore(tmp_path / "store")
    assert compute_subspaces(model, attention(model), one) == 12
    seen = []
    done = compute_subspaces(
        model, attention(model), two, progress=lambda *now: seen.append(now), workers=2
    )
    assert done == 12
    assert seen[-1] == ("subspaces", 12, 12)
    for path in attention(model):
        a, b = (store.get(model.fingerprint(path)) for store in (one, two))
        assert a is not None
        assert b is not None
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    assert compute_subspaces(model, attention(model), two, workers=2) == 0


def test_more_columns_are_computed_when_a_rule_needs_them(tmp_path: Path):
    model, store = make_model(tmp_path), FolderStore(tmp_path / "store")
    path = attention(model)[-1]
    few = load_or_compute(model, path, store, BasisRule("energy", 0.5))
    many = load_or_compute(model, path, store, BasisRule("rank", 24))
    assert few.extent.columns < many.extent.columns == 24
    found = store.extent(model.fingerprint(path))
    assert found is not None
    assert found.columns == 24


def test_optimal_is_by_the_shape_of_each_weight(tmp_path: Path):
    model, store = make_model(tmp_path), MemoryStore()
    paths = attention(model)
    compute_subspaces(model, paths, store, BasisRule("optimal"))
    shapes = {model.spec.modules[path].matrix_shape for path in paths}
    assert len({min(shape) / max(shape) for shape in shapes}) > 1
    for path in paths:
        basis, shape = (
            store.get(model.fingerprint(path)),
            sorted(model.spec.modules[path].matrix_shape),
        )
        assert basis is not None
        needed = reference.rank_of(basis.s, ("optimal", *shape))
        assert basis.extent.columns == needed
        one = load_or_compute(model, path, MemoryStore(), BasisRule("optimal"))
        assert one.extent.columns == needed


def test_bad_weight_is_named_also_from_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make_model(tmp_path, bad=True)
    monkeypatch.setattr(module, "POOL_WORTH", 0.0)
    for workers in (1, 2):
        with pytest.raises(BaseModelError, match=r"attn1.to_q: found NaN .*another copy") as caught:
            compute_subspaces(model, attention(model), MemoryStore(), workers=workers)
        assert caught.value.code == "non-finite"


def test_damaged_file_is_computed_again(tmp_path: Path):
    model, store = make_model(tmp_path), FolderStore(tmp_path / "store")
    path = attention(model)[0]
    before = load_or_compute(model, path, store)
    file = next(store.folder.iterdir())
    file.write_bytes(file.read_bytes()[:100])
    assert store.get(model.fingerprint(path)) is None
    again = load_or_compute(model, path, store)
    np.testing.assert_array_equal(again.u, before.u)
    assert store.get(model.fingerprint(path)) is not None


def test_prune_touches_only_what_is_the_stores(tmp_path: Path):
    model, store = make_model(tmp_path), FolderStore(tmp_path / "store")
    compute_subspaces(model, attention(model), store)
    mine = store.folder / "notes.txt"
    mine.write_text("mine")
    old = store.folder / f"{'0' * 32}.v0.safetensors"
    fresh, stale = (store.folder / f".{i}{TEMPORARY_SUFFIX}" for i in range(2))
    for path in (old, fresh, stale):
        path.write_bytes(b"x")
    hours_ago = time.time() - 9000
    os.utime(stale, (hours_ago, hours_ago))
    assert store.prune(None, dry_run=True) == (2, 2)
    assert stale.exists()
    assert store.prune(None) == (2, 2)
    assert {path.name for path in store.folder.glob("*.txt")} == {"notes.txt"}
    assert fresh.exists()
    assert len(store.entries()) == 12
    keep = {model.fingerprint(attention(model)[0])}
    assert store.prune(keep)[0] == 11
    assert [entry.fingerprint for entry in store.entries()] == list(keep)
    assert mine.exists()


def test_store_of_nothing(tmp_path: Path):
    store = FolderStore(tmp_path / "none")
    assert (store.entries(), store.prune(None)) == ([], (0, 0))
    assert store.get("0" * 32) is store.extent("0" * 32) is None
    store.put("0" * 32, Basis(np.eye(3), np.ones(3), np.eye(3)))
    assert len(store.entries()) == 1


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = make_model(tmp_path)
    store = ["--store", str(tmp_path / "store"), "--json"]
    build = ["subspaces", "build", model.location, *store, "-q"]
    for expected in (12, 0):
        assert run(build) == 0
        assert json.loads(capsys.readouterr().out)["models"][0]["computed"] == expected
    assert run(["subspaces", "list", *store]) == 0
    listed = json.loads(capsys.readouterr().out)["subspaces"]
    assert {tuple(entry["shape"]) for entry in listed} == {(24, 24), (24, 32)}
    assert run(["subspaces", "prune", *store, "--keep", model.location]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 0
    assert run(["subspaces", "list", "--store", str(tmp_path / "store")]) == 0
    assert "12 subspaces" in capsys.readouterr().out
    assert run(["subspaces", "build", "--store", str(tmp_path / "store")]) == 2
    assert run([*build, "--workers", "0"]) == 2


def migrated_once(folder: Path) -> tuple[FolderStore, BaseModel, BaseModel]:
    """A store with all that the migration of one adapter can leave there, and the base models."""
    files, store = make_files(folder), FolderStore(folder / "store")
    models = ["--source", str(files.source), "--target", str(files.target)]
    command = ["migrate", str(files.adapter), *models, "--out", str(folder / "out.safetensors")]
    how = ["--keep-operators", "--json", "-q", "--workers", "1"]
    assert run([*command, "--store", str(store.folder), *how]) == 0
    return store, load_base_model(files.source), load_base_model(files.target)


def test_list_and_prune_know_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store, source, target = migrated_once(tmp_path)
    capsys.readouterr()
    options = ["--store", str(store.folder), "--json"]

    def answer(*command: str) -> dict:
        assert run(["subspaces", *command, *options]) == 0
        return json.loads(capsys.readouterr().out)

    listed = answer("list")
    operators, compared = store.operators.entries(), store.operators.comparisons()
    assert operators
    assert compared
    rows = {(row["method"], *row["shape"]): row for row in listed["operators"]}
    assert len(rows) == len(listed["operators"])  # one row per arm and shape
    assert set(rows) == {(entry.key.method, *entry.shape) for entry in operators}
    assert sum(row["count"] for row in rows.values()) == len(operators)
    assert sum(row["bytes"] for row in rows.values()) == sum(entry.size for entry in operators)
    size = sum(path.stat().st_size for path in (store.folder / "operators").glob("*.json"))
    assert listed["comparisons"] == {"count": len(compared), "bytes": size}
    assert run(["subspaces", "list", *options[:2]]) == 0
    table = capsys.readouterr().out
    assert f"{len(operators)} operators, " in table
    assert f"{len(compared)} comparisons, " in table
    assert all(f"{out} x {into}" in table for _, out, into in rows)

    both = ["--keep", source.location, "--keep", target.location]
    assert answer("prune", *both)["files"] == answer("prune")["files"] == 0
    assert answer("prune", "--older-than", "2.5")["files"] == 0
    # Only one of a file's two weights is kept.
    answer("prune", "--keep", source.location)
    listed = answer("list")
    assert listed["subspaces"]
    assert listed["operators"] == []
    assert listed["comparisons"]["count"] == 0


def test_prune_by_age(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store, source, _ = migrated_once(tmp_path)
    files = sorted(store.folder.rglob("*.v*.*"))
    days_ago = time.time() - 10 * 86400
    for path in files[1:]:
        os.utime(path, (days_ago, days_ago))
    capsys.readouterr()
    prune = ["subspaces", "prune", "--store", str(store.folder), "--older-than"]
    assert run([*prune, "3", "--dry-run"]) == 0
    assert f"Would delete {len(files) - 1} files" in capsys.readouterr().out
    assert run([*prune, "10.5"]) == 0
    assert "Deleted 0 files of subspaces, operators and comparisons" in capsys.readouterr().out
    # With --keep, either is enough to stay.
    assert run([*prune, "3", "--keep", source.location]) == 0
    kept = {entry.fingerprint for entry in store.entries()}
    assert kept - {files[0].name[:32]} <= {source.fingerprint(p) for p in source.spec.modules}
    assert kept
    assert run([*prune, "3"]) == 0
    assert sorted(store.folder.rglob("*.v*.*")) == files[:1]


@pytest.mark.parametrize("days", ["-1", "nan", "inf", "week"])
def test_prune_refuses_days_that_are_none(
    days: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(["subspaces", "prune", "--store", str(tmp_path), f"--older-than={days}"]) == 2
    assert "--older-than" in capsys.readouterr().err


def test_build_for_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = make_files(tmp_path)
    pair = BasePair(load_base_model(files.source), load_base_model(files.target))
    pairs = pair.matching().pairs
    folder = tmp_path / "store"
    build = ["subspaces", "build", str(files.source), str(files.target)]
    options = ["--for-pair", "--store", str(folder), "--json", "-q"]
    assert run([*build, *options]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert [entry["model"] for entry in found] == [pair.source.location, pair.target.location]
    # No module of this target is without a source; of the source, deeper blocks have no use.
    used = {path for path in attention(pair.target) if path in pairs}
    assert used == set(attention(pair.target))
    sources = {pairs[path] for path in used}
    assert sources < set(attention(pair.source))
    assert [entry["modules"] for entry in found] == [len(sources), len(used)]
    stored = {entry.fingerprint for entry in FolderStore(folder).entries()}
    assert stored == {pair.source.fingerprint(path) for path in sources} | {
        pair.target.fingerprint(path) for path in used
    }
    assert run([*build, *options]) == 0
    assert [e["computed"] for e in json.loads(capsys.readouterr().out)["models"]] == [0, 0]
    # A migration finds everything that it needs.
    seen = []
    store = FolderStore(folder)
    moving = {path: pairs[path] for path in used}
    BasePair(pair.source, pair.target, store).measure(
        moving, MigrationOptions(), lambda *now: seen.append(now[0])
    )
    assert set(seen) == {"similarity"}
    for models in ([], [str(files.source)], [str(files.source)] * 3):
        assert run(["subspaces", "build", *models, *options]) == 2
        message = capsys.readouterr().err
        assert ("at least one" if not models else f"found {len(models)}") in message


# It kills itself: who watches a process from outside may look too late on a busy machine.
KILLED = """
import os, signal, sys
from prolora_jax.cli.main import main
from prolora_jax.io.stores.basis_store import FolderStore
put, kept = FolderStore.put, []
def counted(self, *entry):
    put(self, *entry)
    kept.append(entry)
    if len(kept) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
FolderStore.put = counted
main(sys.argv[1:])
"""


def test_killed_build_goes_on_where_it_was(tmp_path: Path):
    model = make_model(tmp_path, blocks=6)
    folder = tmp_path / "store"
    words = ["subspaces", "build", model.location, "--store", str(folder), "-q", "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], check=False)
    assert done.returncode == -signal.SIGKILL
    store = FolderStore(folder)
    stored = {entry.fingerprint for entry in store.entries()}
    assert len(stored) == 3
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert compute_subspaces(model, attention(model), store) == 36 - len(stored)
    for name, written in times.items():
        assert (folder / name).stat().st_mtime_ns == written
    assert len(store.entries()) == 36
