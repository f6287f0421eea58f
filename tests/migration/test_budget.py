"""`--rank budget=` and `mean=`: rank spread over a file's modules, against brute force in NumPy."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_pair
from safetensors.numpy import load_file, save_file

from prolora_jax.catalog.catalog import run_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.cli.main import run
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.method.spreading import spread
from prolora_jax.migration.one_file import MigratedFile, migrate_file
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import BadOption, MigrationOptions
from prolora_jax.plans.rules import BadRule, ModuleRule
from prolora_jax.verification.file import verify_file

BYTES = 2
"""Of a number of the toy adapter."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> toy_pair.ToyFiles:
    made = toy_pair.make_files(tmp_path_factory.mktemp("budget"))
    tensors, rng = load_file(made.adapter), np.random.default_rng(5)
    for key, array in tensors.items():
        if key.endswith(".lora_up.weight"):  # modules, and columns, of different strength
            sizes = rng.uniform(0.2, 3.0) * np.geomspace(1.0, 0.2, array.shape[1])
            tensors[key] = (array * sizes).astype(np.float16)
    save_file(tensors, made.adapter)
    return made


def migrated(files: toy_pair.ToyFiles, out: Path, **options: Any) -> MigratedFile:
    given: dict[str, Any] = {"min_similarity": 0.3} | options
    store = FolderStore(files.adapter.parent / "store")
    asked = MigrationOptions(**given)
    return migrate_file(files.adapter, files.source, files.target, out, asked, store=store)


def sigmas_of(file: Path, target: Path) -> dict[str, np.ndarray]:
    """Singular values of each update of a file, dense."""
    found = {}
    for module in load_adapter(file, load_base_model(target).spec).modules:
        up, down = (a.astype(np.float64) for a in (module.up, module.down))
        update = module.scale * up.reshape(-1, module.rank) @ down.reshape(module.rank, -1)
        found[module.path] = np.linalg.svd(update, compute_uv=False)
    return found


def by_brute_force(
    sigmas: dict[str, np.ndarray], costs: dict[str, float], budget: float
) -> dict[str, int]:
    """One column each; then, again and again, the best next column of all until it is too dear."""
    ranks = dict.fromkeys(sigmas, 1)
    while True:
        worth = {
            path: sigmas[path][rank] ** 2 / costs[path]
            for path, rank in ranks.items()
            if rank < len(sigmas[path]) and sigmas[path][rank] > 1e-4 * sigmas[path][0]
        }
        if not worth:
            return ranks
        best = max(worth, key=worth.__getitem__)
        if sum(costs[p] * r for p, r in ranks.items()) + costs[best] > budget:
            return ranks
        ranks[best] += 1


@pytest.mark.parametrize("method", ["prolora", "prolora-full", "copy"])
@pytest.mark.parametrize("kind", ["budget", "mean"])
def test_ranks_are_those_of_brute_force(
    files: toy_pair.ToyFiles, tmp_path: Path, method: str, kind: str
):
    whole = migrated(files, tmp_path / "whole.safetensors", method=method).output
    sigmas = sigmas_of(whole, files.target)
    shapes = {m.path: (m.up.shape[0], m.down.shape[1]) for m in load_base(whole, files).modules}
    if kind == "mean":
        costs, value = dict.fromkeys(sigmas, 1.0), 2.3
        budget = float(int(value * len(sigmas)))
    else:
        costs = {path: float(BYTES * sum(shapes[path])) for path in sigmas}
        value = budget = float(int(2.3 * sum(costs.values())))
    text = f"{kind}={value:g}" if kind == "mean" else f"{kind}={value:.0f}"
    done = migrated(files, tmp_path / "out.safetensors", method=method, rank=text)
    ranks = {module.path: module.rank_out for module in done.report.modules}
    assert ranks == by_brute_force(sigmas, costs, budget)
    assert len(set(ranks.values())) > 1
    tensors = load_file(done.output)
    if kind == "budget":
        assert sum(a.nbytes for key, a in tensors.items() if ".lora_" in key) <= budget
    else:
        assert np.mean(list(ranks.values())) <= 2.3
    for module in done.report.modules:
        squares = sigmas[module.path] ** 2
        kept = squares[: module.rank_out].sum() / squares.sum()
        assert module.kept == pytest.approx(kept, abs=2e-3)
    assert verify_file(done.output).ok, verify_file(done.output)


def load_base(file: Path, files: toy_pair.ToyFiles):
    return load_adapter(file, load_base_model(files.target).spec)


def test_no_other_choice_of_that_cost_holds_more():
    rng = np.random.default_rng(0)
    for _ in range(30):
        sigmas = [np.sort(rng.uniform(size=4))[::-1] for _ in range(4)]
        costs = rng.integers(1, 6, size=4).astype(float)
        budget = float(rng.integers(int(costs.sum()), 40))
        ranks = spread(sigmas, list(costs), budget)
        spent = float(costs @ ranks)
        assert spent <= budget
        held = [np.concatenate([[0.0], np.cumsum(s**2)]) for s in sigmas]
        best = max(
            sum(h[r] for h, r in zip(held, other, strict=True))
            for other in product(range(1, 5), repeat=4)
            if costs @ other <= spent
        )
        mine = sum(h[r] for h, r in zip(held, ranks, strict=True))
        assert mine == pytest.approx(best, rel=1e-12)


def test_each_module_keeps_a_column_and_none_that_is_zero():
    sigmas = [np.array([1.0, 0.5, 0.0]), np.array([0.0, 0.0]), np.array([3.0, 3.0, 3.0])]
    assert spread(sigmas, [1.0, 1.0, 1.0], 0.0) == [1, 1, 1]
    assert spread(sigmas, [1.0, 1.0, 1.0], 100.0) == [2, 1, 3]
    assert spread(sigmas, [1.0, 1.0, 10.0], 14.0) == [1, 1, 1]
    # Of equal columns the first module's come first; what does not fit ends it.
    assert spread([np.ones(3), np.ones(3)], [1.0, 1.0], 3.0) == [2, 1]
    assert spread([np.array([3.0, 3.0]), np.array([1.0, 1.0])], [5.0, 1.0], 8.0) == [1, 1]


def test_a_budget_below_one_column_each_is_flagged(files: toy_pair.ToyFiles, tmp_path: Path):
    done = migrated(files, tmp_path / "out.safetensors", rank="budget=1")
    assert {module.rank_out for module in done.report.modules} == {1}
    size = sum(a.nbytes for key, a in load_file(done.output).items() if ".lora_" in key)
    assert f"over-budget: {size} bytes" in done.report.flags
    assert verify_file(done.output).ok
    text = done.report_file.read_text()
    done.report_file.write_text(text.replace(f"over-budget: {size} bytes", "over-budget: 7 bytes"))
    assert "over-budget" in problems_of(done.output)


def problems_of(out: Path) -> str:
    checked = verify_file(out)
    assert not checked.ok
    return "; ".join([*checked.problems, *(p for m in checked.modules for p in m.problems)])


def test_ranks_that_another_budget_gives_are_found(files: toy_pair.ToyFiles, tmp_path: Path):
    for rank, other, problem in (
        ("mean=3", "mean=2", "ranks of the file cost"),
        ("mean=2", "mean=3", "a column was left out, and the budget has room for it"),
        ("2", "mean=2", "a column was left out that holds more for its cost"),
    ):
        out = tmp_path / f"{rank}-{other}.safetensors"
        done = migrated(files, out, rank=rank)
        text = done.report_file.read_text()
        assert f'"rank": "{rank}"' in text
        done.report_file.write_text(text.replace(f'"rank": "{rank}"', f'"rank": "{other}"'))
        assert problem in problems_of(out)


def test_a_catalog_spreads_each_file_by_itself(files: toy_pair.ToyFiles, tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    tensors = load_file(files.adapter)
    (folder / "a.safetensors").symlink_to(files.adapter)
    louder = {k: 2 * a if "attn1" in k and "up" in k else a for k, a in tensors.items()}
    save_file(louder, folder / "b.safetensors")
    store = FolderStore(files.adapter.parent / "store")
    pair = BasePair(load_base_model(files.source), load_base_model(files.target), store)
    how = MigrationOptions(rank="mean=2.5", min_similarity=0.3)
    found = run_catalog(CatalogJob((folder,), tmp_path / "out", how), pair)
    assert found.by_state == {"migrated": 2}, found.by_reason
    alone = migrated(files, tmp_path / "alone.safetensors", rank="mean=2.5").output
    a, b = (ranks_of(tmp_path / "out" / f"{n}.safetensors") for n in "ab")
    assert a == ranks_of(alone) != b
    assert all(verify_file(tmp_path / "out" / f"{n}.safetensors").ok for n in "ab")


def ranks_of(file: Path) -> dict[str, int]:
    return {k: a.shape[0] for k, a in load_file(file).items() if k.endswith("lora_down.weight")}


def test_a_rule_with_a_rank_of_its_own_costs_nothing(files: toy_pair.ToyFiles, tmp_path: Path):
    rules = (ModuleRule("*attn2*", rank="3"),)
    done = migrated(files, tmp_path / "out.safetensors", rank="mean=2", rules=rules)
    ranks = {module.path: module.rank_out for module in done.report.modules}
    assert {rank for path, rank in ranks.items() if "attn2" in path} == {3}
    others = [rank for path, rank in ranks.items() if "attn2" not in path]
    assert sum(others) == 2 * len(others)
    assert verify_file(done.output).ok


@pytest.mark.parametrize("text", ["budget=", "budget=0", "budget=1.5", "mean=0.5", "mean=inf"])
def test_texts_that_are_no_budget(text: str):
    with pytest.raises(BadOption, match=f"--rank {text}: .*budget=20000000 . mean=8"):
        MigrationOptions(rank=text)


def test_options_that_go_with_no_budget():
    with pytest.raises(BadOption, match="--uniform-rank True: expected none with --rank mean=2"):
        MigrationOptions(rank="mean=2", uniform_rank=True)
    with pytest.raises(BadOption, match="--rescale norm: expected none with --rank budget=9"):
        MigrationOptions(rank="budget=9", rescale="norm")
    with pytest.raises(BadRule, match="--rank mean=2: expected a rank of single modules"):
        MigrationOptions(rules=(ModuleRule("*", rank="mean=2"),))


def test_the_command_line(files: toy_pair.ToyFiles, tmp_path: Path):
    out = tmp_path / "out.safetensors"
    words = ["migrate", files.adapter, "--source", files.source, "--target", files.target]
    words += ["--out", out, "--rank", "mean=2", "--quiet"]
    assert run(list(map(str, words))) == 0
    assert run(["verify", str(out)]) == 0
