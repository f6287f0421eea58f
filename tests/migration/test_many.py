"""Many files in one run: the same bytes as alone, few compilations, one bad file harms no other."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring
from small_adapters import SPEC, write
from toy_pair import ToyFiles, make_files

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.cli.main import run
from prolora_jax.errors import Refusal
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.method.encoding import rank_class
from prolora_jax.method.operators import Method, Span, prepare_side
from prolora_jax.method.projection import apply_side
from prolora_jax.migration.blocks import WIDTHS, split_rows
from prolora_jax.migration.execute import Work
from prolora_jax.migration.jobs import FileJob
from prolora_jax.migration.many import migrate_files
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import MigrationPlan


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def pair(demo: ToyFiles) -> BasePair:
    store = FolderStore(demo.adapter.parent / "store")
    return BasePair(load_base_model(demo.source), load_base_model(demo.target), store)


def test_modules_are_handed_over_and_nobodys_table_is_emptied():
    modules = {"a": LoraModule("a", np.ones((2, 3)), np.ones((4, 2)), None)}
    work = Work(modules, MigrationPlan(MigrationOptions(), "source", "target", (), (), ()))
    assert work.take_modules() is modules
    assert not work.modules
    assert list(modules) == ["a"]


def migrated(files: Sequence[Path], out: Path, pair: BasePair, options: MigrationOptions):
    """Digests of the outputs by name."""
    outcomes = list(migrate_files([FileJob(f, out / f.name) for f in files], pair, options))
    assert [o.error for o in outcomes if o.error is not None] == []
    assert sorted(o.job.source for o in outcomes) == sorted(files)
    return {f.name: hashlib.sha256((out / f.name).read_bytes()).hexdigest() for f in files}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (MigrationOptions(rank="source"), 64),
        (MigrationOptions(), 16),
        (MigrationOptions(rank="energy=0.9", rescale="norm"), 16),
        (MigrationOptions(method="rotation", rescale="norm", dtype="float32"), 16),
    ],
    ids=["recompressed", "exact", "energy", "rotation"],
)
def test_a_file_gets_the_same_bytes_alone_and_among_others(
    pair: BasePair, tmp_path: Path, options: MigrationOptions, count: int
):
    """Neighbours of all rank classes, of other modules, and enough of them for several batches."""
    ranks = [(4,), (3, 12), (16,), (40,), (8, 24)]
    files = [
        write(
            tmp_path / f"{i:02}.safetensors",
            i,
            ranks[i % 5],
            ("to_q",) if i % 7 else ("to_q", "to_v"),
        )
        for i in range(count)
    ]
    alone = {}
    for file in files[:5]:
        alone |= migrated([file], tmp_path / "one", pair, options)
    three = migrated(files[1:4], tmp_path / "three", pair, options)
    many = migrated(files, tmp_path / "many", pair, options)
    assert three == {name: alone[name] for name in three}
    assert {name: many[name] for name in alone} == alone


def test_a_row_has_the_same_bits_at_every_width_and_place():
    """What the test above rests on, at real sizes: the neighbours are other numbers, too."""
    rng = np.random.default_rng(0)
    for dim, k in ((48, 20), (320, 100), (640, 400), (1280, 640), (2048, 640)):
        q, _ = np.linalg.qr(rng.normal(size=(dim, k)))
        side = prepare_side("prolora", Span(q), Span(q[:, ::-1]))
        row = rng.normal(size=(8, dim)).astype(np.float32)
        seen = set()
        for width in WIDTHS:
            for place in {0, width // 16, width // 8 - 1}:
                block = rng.normal(size=(width // 8, 8, dim)).astype(np.float32)
                block[place] = row
                parts = apply_side(side.form, side.operator, jnp.asarray(block)).parts
                seen.add(b"".join(np.asarray(part[place]).tobytes() for part in parts))
        assert len(seen) == 1, dim


def test_a_second_catalog_compiles_nothing(pair: BasePair, tmp_path: Path):
    compiled = []
    monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    jax.clear_caches()
    first = [write(tmp_path / f"a{i}.safetensors", i, (4, 12, 40)[i % 3 :][:1]) for i in range(12)]
    options = MigrationOptions(rank="source")
    migrated(first, tmp_path / "first", pair, options)
    # Shapes of the demo's nets: 4 of modules, 2 or 3 forms each, 3 rank classes, 2 widths at most.
    assert 0 < len(compiled) <= 150
    compiled.clear()
    other = [write(tmp_path / f"b{i}.safetensors", i, (7, 9, 33)[i % 3 :][:1]) for i in range(12)]
    migrated(other, tmp_path / "second", pair, options)
    assert compiled == []


def test_rows_are_split_into_blocks_of_the_menu():
    assert [rank_class(r) for r in (1, 8, 9, 32, 33, 600)] == [8, 8, 16, 32, 64, 1024]
    for rank in (8, 16, 64, 512, 1024):
        for adapters in range(1, 80):
            blocks = list(split_rows(adapters, rank))
            assert blocks[0][0] == 0
            assert all(a + n == b for (a, n), (b, _) in zip(blocks, blocks[1:], strict=False))
            assert blocks[-1][0] < adapters <= sum(blocks[-1])
            assert {n for _, n in blocks} <= {max(w // rank, 1) for w in WIDTHS}


def test_a_folder_is_mirrored_and_bad_files_are_named(
    demo: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    catalog, out = tmp_path / "catalog", tmp_path / "out"
    (catalog / "styles" / "old").mkdir(parents=True)
    write(catalog / "a.safetensors", 1, (4,))
    write(catalog / "styles" / "old" / "b c.safetensors", 2, (8,))
    (catalog / "styles" / "broken.safetensors").write_bytes(b"not a file")
    (catalog / "styles" / "notes.txt").write_text("no adapter")
    (catalog / "styles" / "loop").symlink_to(catalog)
    write(out / "a.safetensors", 1, (4,))  # is there already
    command = ["migrate", str(catalog), "--source", str(demo.source), "--target", str(demo.target)]
    command += ["--out", str(out), "--store", str(demo.adapter.parent / "store"), "-q"]
    assert run([*command, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["migrated"] == [str(out / "styles" / "old" / "b c.safetensors")]
    reasons = {Path(row["path"]).name: row["reason"] for row in document["refused"]}
    assert reasons == {
        "a.safetensors": Refusal.OUTPUT_EXISTS,
        "broken.safetensors": Refusal.NOT_SAFETENSORS,
    }
    assert run([*command, "--overwrite", "--retry-failed"]) == 1
    said = capsys.readouterr().out
    assert "2 of 3 adapters" in said
    assert "1 not-safetensors" in said
    (catalog / "styles" / "broken.safetensors").unlink()
    assert run(command) == 0
    files = {p.relative_to(out).as_posix() for p in out.rglob("*.safetensors*")}
    assert files == {
        f"{name}{suffix}"
        for name in ("a.safetensors", "styles/old/b c.safetensors")
        for suffix in ("", ".report.json")
    }
    assert run(["verify", str(out / "styles" / "old" / "b c.safetensors"), "-q"]) == 0
    capsys.readouterr()
    assert run(["status", str(out), "--json", "--export", str(tmp_path / "all.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["by_state"] == {"migrated": 2}
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 3
    assert run(["verify", str(out), "--all", "--json", "-q"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["outputs"], checked["whole"], checked["recomputed"]) == (2, 2, 2)
    assert checked["worst_error"] < 1e-3
    (out / "a.safetensors").write_bytes(b"torn")
    assert run(["verify", str(out), "--sample", "0", "-q"]) == 1
    assert "1 of 2 outputs are as they were written" in capsys.readouterr().out


def test_a_dry_run_over_a_folder_writes_nothing(
    demo: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    catalog, out = tmp_path / "catalog", tmp_path / "out"
    catalog.mkdir()
    write(catalog / "a.safetensors", 1, (4,))
    (catalog / "many.zip").write_bytes(b"PK")
    command = ["migrate", str(catalog), "--source", str(demo.source), "--target", str(demo.target)]
    command += ["--out", str(out), "--store", str(demo.adapter.parent / "store"), "-q", "--dry-run"]
    assert run(command) == 1
    said = capsys.readouterr().out
    assert "2 files: " in said
    assert "1 refused" in said
    assert run([*command, "--json"]) == 1
    verdicts = {r["input"]: r["verdict"] for r in json.loads(capsys.readouterr().out)["files"]}
    assert verdicts["many.zip"] == "refused"
    assert verdicts["a.safetensors"] in {"ok", "partial"}
    assert not out.exists()


@pytest.mark.parametrize("more", [["--plan", "plan.json"], []])
def test_several_inputs_need_a_folder(demo: ToyFiles, tmp_path: Path, more: list[str]):
    files = [str(write(tmp_path / f"{i}.safetensors", i, (4,))) for i in range(2)]
    bases = ["--source", str(demo.source), "--target", str(demo.target)]
    assert run(["migrate", *files, *bases, *more]) == 2
    assert run(["migrate", *files, *bases, "--out", files[0], *more]) == 2


@pytest.mark.parametrize("method", ["copy", "prolora"])
def test_float64_becomes_float32(pair: BasePair, tmp_path: Path, method: Method):
    narrow = write(tmp_path / "narrow.safetensors", 1, (4,))
    adapter = load_adapter(narrow, SPEC)
    wide = [replace(m, up=m.up.astype(float), down=m.down.astype(float)) for m in adapter.modules]
    save_adapter(replace(adapter, modules=tuple(wide)), tmp_path / "wide.safetensors", base=SPEC)
    migrated(
        [tmp_path / "wide.safetensors"], tmp_path / "out", pair, MigrationOptions(method=method)
    )
    options = MigrationOptions(method=method, dtype="float32")
    migrated([narrow], tmp_path / "out", pair, options)
    found, expected = (
        load_adapter(tmp_path / "out" / f"{n}.safetensors") for n in ("wide", "narrow")
    )
    for a, b in zip(found.modules, expected.modules, strict=True):
        assert a.up.dtype == b.up.dtype == np.float32
        np.testing.assert_array_equal(a.up, b.up)
