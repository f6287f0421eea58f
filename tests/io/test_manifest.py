"""The manifest: every field comes back, readers see what a writer has committed, exports."""

import csv
import json
import sqlite3
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from prolora_jax.errors import OutputError, Refusal, UsageError
from prolora_jax.io.outputs.manifest import NAME, Manifest, ManifestRow, Proof, export
from prolora_jax.plans.catalog_record import CatalogRecord, count_records

FULL = CatalogRecord(
    input="styles/ü \n b.safetensors",
    output="styles/b.safetensors",
    verdict="partial",
    state="migrated",
    reason=None,
    message="two lines\nof text",
    format="kohya-ldm",
    modules=10,
    moved=7,
    skipped={"below-threshold": 3},
    energy_in=1.0 / 3.0,
    energy_moved=0.1,
    energy_out=1e-300,
    phi_min=0.8,
    phi_mean=0.9,
    size_in=2**40,
    size_out=5,
    flags=("weak-match: 2", 'quoted "x", comma'),
    duplicate_of="a.safetensors",
    input_hash="ab",
    output_hash="cd",
    preview="styles/b.png",
    seconds=0.5,
)
BARE = CatalogRecord(
    input="a.zip", output=None, verdict="refused", state="refused", reason="archive"
)


def test_every_field_comes_back(tmp_path: Path):
    proof = Proof("job", "1:2", "3:4")
    with Manifest(tmp_path / "out", write=True) as manifest:
        manifest.put(ManifestRow(FULL, proof), ManifestRow(BARE, Proof()))
        manifest.set_facts(source="sdxl", started=None, options={"rank": "source"})
    with Manifest(tmp_path / "out") as manifest:
        assert list(manifest.entries()) == [ManifestRow(BARE, Proof()), ManifestRow(FULL, proof)]
        assert manifest.facts() == {
            "source": "sdxl",
            "started": None,
            "options": {"rank": "source"},
        }


def test_a_reader_sees_what_was_committed_while_the_writer_goes_on(tmp_path: Path):
    with Manifest(tmp_path, write=True) as writer:
        writer.put(ManifestRow(BARE, Proof()))
        with Manifest(tmp_path) as reader:
            assert [r.state for r in reader.records()] == ["refused"]
            writer.put(ManifestRow(replace(BARE, state="failed"), Proof()))
            assert [r.state for r in reader.records()] == ["failed"]
            writer.remove([BARE.input])
            assert list(reader.records()) == []


def test_exports_hold_the_records(tmp_path: Path):
    export([FULL, BARE], tmp_path / "x.jsonl")
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        json.loads(json.dumps(asdict(record))) for record in (FULL, BARE)
    ]
    export([FULL, BARE], tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [f.name for f in fields(CatalogRecord)]
    assert rows[0]["input"] == FULL.input
    assert float(rows[0]["energy_in"]) == FULL.energy_in
    assert json.loads(rows[0]["skipped"]) == FULL.skipped
    assert tuple(json.loads(rows[0]["flags"])) == FULL.flags
    assert rows[1]["energy_in"] == ""
    with pytest.raises(UsageError, match=r"\.jsonl or \.csv"):
        export([], tmp_path / "x.txt")


def test_what_is_no_manifest_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="found no manifest"):
        Manifest(tmp_path)
    (tmp_path / NAME).write_text("something else, and long enough to be looked at" * 9)
    for write in (False, True):
        with pytest.raises(UsageError, match="cannot be read as a manifest") as raised:
            Manifest(tmp_path, write=write)
        assert raised.value.code is Refusal.BAD_REPORT
    (tmp_path / NAME).unlink()
    with sqlite3.connect(tmp_path / NAME) as db:
        db.execute("CREATE TABLE other (x)")
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UsageError, match="version 99"):
        Manifest(tmp_path, write=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Manifest(tmp_path / "file" / "out", write=True)


def test_counts():
    found = count_records([FULL, BARE, replace(BARE, input="b")])
    assert found.files == 3
    assert found.by_state == {"refused": 2, "migrated": 1}
    assert found.by_verdict == {"refused": 2, "partial": 1}
    assert found.by_reason == {"archive": 2}
