"""What stands beside an adapter goes with it, and is read for its licence."""

import json
import os
from pathlib import Path

import pytest
from safetensors import safe_open
from small_adapters import write
from toy_pair import ToyFiles, make_files

from prolora_jax.catalog.catalog import run_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.cli.main import run
from prolora_jax.errors import Refusal
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.adapters.sidecars import Folders, carry
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.outputs.manifest import Manifest
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.files import Writing
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions

CIVITAI = {
    "id": 5,
    "trainedWords": ["zxc style"],
    "baseModel": "SDXL 1.0",
    "files": [{"name": "a.safetensors", "hashes": {"SHA256": "ABC", "AutoV2": "DEF"}}],
    "images": [{"hash": "U5Hash", "url": "x"}],
    "model": {"allowDerivatives": True},
}
TEXT_SECRETS = ("ABC", "DEF")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToyFiles:
    return make_files(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def pair(toys: ToyFiles, tmp_path_factory: pytest.TempPathFactory) -> BasePair:
    store = FolderStore(tmp_path_factory.mktemp("store"))
    return BasePair(load_base_model(toys.source), load_base_model(toys.target), store)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "catalog"
    place.mkdir()
    write(place / "a.safetensors", 1, (4,), ("to_q",))
    (place / "a.civitai.info").write_text(json.dumps(CIVITAI))
    (place / "a.json").write_text('{"activation text": "zxc style", "preferred weight": 0.7}')
    (place / "a.preview.png").write_bytes(b"\x89PNG a")
    (place / "a.safetensors.txt").write_text("notes")
    (place / "again.safetensors").write_bytes((place / "a.safetensors").read_bytes())
    (place / "again.webp").write_bytes(b"RIFF again")
    adapter = load_adapter(write(place / "old.safetensors", 2, (4,), ("to_q",)), pair_spec())
    save_adapter(adapter, place / "p", format="peft", base=pair_spec())
    (place / "old.safetensors").unlink()
    (place / "p" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# p\n")
    (place / "p" / "image_0.png").write_bytes(b"\x89PNG p")
    return place


def pair_spec():
    from small_adapters import SPEC

    return SPEC


def job(folder: Path, **changes) -> CatalogJob:
    out = folder.parent / "out"
    return CatalogJob((folder,), out, MigrationOptions(), Writing(**changes))


def records(folder: Path) -> dict:
    with Manifest(folder.parent / "out") as manifest:
        return {r.input: r for r in manifest.records()}


def test_carried_under_the_new_names(folder: Path, pair: BasePair):
    run_catalog(job(folder), pair)
    out = folder.parent / "out"
    assert not (out / "a.preview.png").exists()
    first = {p: p.stat().st_ino for p in out.rglob("*.safetensors")}
    run_catalog(job(folder, sidecars=True), pair)  # nothing is migrated again for it
    assert {p: p.stat().st_ino for p in out.rglob("*.safetensors")} == first
    assert (out / "a.preview.png").read_bytes() == b"\x89PNG a"
    assert (out / "a.safetensors.txt").read_text() == "notes"
    assert (out / "again.webp").read_bytes() == b"RIFF again"
    assert (out / "p" / "image_0.png").read_bytes() == b"\x89PNG p"
    assert (out / "p" / "README.md").read_text().startswith("---\nlicense")
    info = json.loads((out / "a.civitai.info").read_text())
    assert info["trainedWords"] == ["zxc style"]
    assert info["images"] == CIVITAI["images"]
    assert info["files"] == [{"name": "a.safetensors"}]
    assert info["prolora"] == {
        "migrated_from": "a.safetensors",
        "source": pair.source.spec.name,
        "target": pair.target.spec.name,
    }
    found = records(folder)
    assert found["a.safetensors"].preview == "a.preview.png"
    assert found["again.safetensors"].preview == "again.webp"
    assert found["again.safetensors"].state == "duplicate"
    assert found["p"].preview == "p/image_0.png"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix != ".sqlite"}
    run_catalog(job(folder, sidecars=True), pair)
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix != ".sqlite"}
    changed = {p.name for p in after if after[p] != before.get(p)}
    assert changed <= {".lock", "pair.report.json", "out", "manifest.sqlite-wal"}


def test_what_cannot_be_read_is_told_and_what_is_anothers_stays(folder: Path, pair: BasePair):
    (folder / "a.json").write_bytes(b"\xff{")
    out = folder.parent / "out"
    out.mkdir()
    (out / "a.preview.png").write_bytes(b"somebody's")
    (out / "a.civitai.info").write_text("{}")
    run_catalog(job(folder, sidecars=True), pair)
    assert (out / "a.preview.png").read_bytes() == b"somebody's"
    assert (out / "a.civitai.info").read_text() == "{}"
    assert (out / "a.json").read_bytes() == b"\xff{"
    flags = records(folder)["a.safetensors"].flags
    assert [f for f in flags if f.startswith("sidecar")] == [
        "sidecar-unreadable: 1",
        "sidecar-exists: 2",
    ]


@pytest.mark.parametrize("where", ["sidecar", "header", "readme"])
def test_a_licence_without_derivatives_refuses(folder: Path, pair: BasePair, where: str):
    name = {"sidecar": "a.safetensors", "header": "h.safetensors", "readme": "p"}[where]
    if where == "sidecar":
        (folder / "a.civitai.info").write_text('{"model": {"allowDerivatives": false}}')
    elif where == "readme":
        (folder / "p" / "README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n")
    else:
        adapter = load_adapter(folder / "a.safetensors", pair_spec())
        place, header = folder / "h.safetensors", {"modelspec.license": "CC BY-NC-ND 4.0"}
        save_adapter(adapter, place, base=pair_spec(), metadata=header)
    run_catalog(job(folder), pair)
    record = records(folder)[name]
    assert (record.state, record.reason) == ("refused", str(Refusal.LICENSE))
    assert "--ignore-license" in (record.message or "")
    assert not (folder.parent / "out" / name).exists()
    run_catalog(job(folder, ignore_license=True), pair)
    assert records(folder)[name].state in {"migrated", "duplicate"}
    run_catalog(job(folder), pair)  # and refused again, when it is not ignored any more
    assert records(folder)[name].state == "refused"


def test_one_file(folder: Path, toys: ToyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["migrate", str(folder / "a.safetensors"), "--store", str(tmp_path / "store"), "-q"]
    words += ["--source", str(toys.source), "--target", str(toys.target), "--sidecars"]
    assert run([*words, "--out", str(tmp_path / "new.safetensors")]) == 0
    assert (tmp_path / "new.preview.png").read_bytes() == b"\x89PNG a"
    assert (tmp_path / "new.safetensors.txt").read_text() == "notes"
    assert not any(s in (tmp_path / "new.civitai.info").read_text() for s in TEXT_SECRETS)
    (folder / "a.civitai.info").write_text('{"model": {"allowDerivatives": false}}')
    capsys.readouterr()
    assert run([*words, "--out", str(tmp_path / "b.safetensors")]) == 1
    assert "model.allowDerivatives: False in a.civitai.info" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
    assert run([*words, "--out", str(tmp_path / "b.safetensors"), "--ignore-license"]) == 0


@pytest.mark.parametrize("format", ["kohya-ldm", "kohya-diffusers", "diffusers", "peft", "flax"])
@pytest.mark.parametrize("strip", [False, True])
def test_licence_and_trigger_words_in_headers_survive(
    folder: Path, tmp_path: Path, format: str, strip: bool
):
    words = {"modelspec.trigger_phrase": "zxc", "ss_tag_frequency": "{}"}
    licence = {"modelspec.license": "MIT"}
    adapter = load_adapter(folder / "a.safetensors", pair_spec())
    out = tmp_path / ("o.msgpack" if format == "flax" else "o.safetensors")
    header = words | licence
    save_adapter(
        adapter, out, format=format, base=pair_spec(), metadata=header, strip_metadata=strip
    )
    if format == "flax":
        kept = load_adapter(out).metadata
    else:
        with safe_open(out, "np") as file:
            kept = file.metadata()
    expected = licence if strip else header
    assert {key: kept.get(key) for key in header} == {key: expected.get(key) for key in header}


def test_names_are_those_of_the_adapter_alone(tmp_path: Path):
    for name in ("a.safetensors", "a.png", "ab.png", "a.b.png", "a.safetensors.png", "A.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.safetensors.report.json").write_text("{}")
    found = [s.path.name for s in Folders().of(tmp_path / "a.safetensors")]
    assert found == ["a.png", "a.safetensors.png"]
    out = tmp_path / "out" / "n.safetensors"
    out.parent.mkdir()
    carried = carry(Folders().of(tmp_path / "a.safetensors"), out, {})
    assert sorted(p.name for p in out.parent.iterdir()) == ["n.png", "n.safetensors.png"]
    assert carried.preview == out.parent / "n.png"


def test_odd_sidecars_are_left_out(tmp_path: Path):
    """A pipe is not waited for, and a link publishes nothing from outside of its folder."""
    folder = tmp_path / "c"
    folder.mkdir()
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": "x"}')
    os.mkfifo(folder / "a.json")
    (folder / "a.txt").symlink_to(secret)
    (folder / "a.metadata.json").symlink_to(secret)
    (folder / "a.png").symlink_to("/dev/zero")
    (folder / "a.md").write_text("kept")
    (folder / "a.yaml").symlink_to(folder / "a.md")
    output = tmp_path / "out" / "b.safetensors"
    carried = carry(Folders().of(folder / "a.safetensors"), output, {})
    assert {path.name for path in output.parent.iterdir()} == {"b.md", "b.yaml"}
    assert carried.flags == ("sidecar-unreadable: 1", "sidecar-link: 3")


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path):
    blobs, snapshot = tmp_path / "models--a/blobs", tmp_path / "models--a/snapshots/1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "0123").write_text("text")
    (snapshot / "a.txt").symlink_to("../../blobs/0123")
    output = tmp_path / "out" / "b.safetensors"
    carry(Folders().of(snapshot / "a.safetensors"), output, {})
    assert (output.parent / "b.txt").read_text() == "text"


def test_a_document_nested_too_deep_is_only_copied(folder: Path, tmp_path: Path):
    text = '{"a":' + "[" * 900 + "]" * 900 + "}"
    (folder / "a.json").write_text(text)
    output = tmp_path / "out" / "b.safetensors"
    carried = carry(Folders().of(folder / "a.safetensors"), output, {})
    assert (output.parent / "b.json").read_text() == text
    assert carried.flags == ("sidecar-unreadable: 1",)
