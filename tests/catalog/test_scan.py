"""A scan looks at each table of tensors once; it says what looking at each file by itself says."""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np
import pytest
from small_adapters import SPEC, write
from toy_pair import make_files

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.benchmarks.mixed_catalog import BROKEN, write_mixed_catalog
from prolora_jax.catalog import scan as scan_module
from prolora_jax.catalog.scan import Scanner
from prolora_jax.io.adapters.files import save_adapter
from prolora_jax.io.adapters.inputs import expand
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers import header_tables, safetensors_header
from prolora_jax.io.containers.header_tables import HeaderTables
from prolora_jax.io.containers.safetensors_header import BadHeader, read_header
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.files import Writing
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.catalog_record import CatalogRecord
from prolora_jax.plans.options import MigrationOptions

COPY = MigrationOptions(method="copy", match="name")
ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> BasePair:
    toys = make_files(tmp_path_factory.mktemp("toys"))
    store = FolderStore(tmp_path_factory.mktemp("store"))
    return BasePair(load_base_model(toys.source), load_base_model(toys.target), store)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixed catalog with each way to be broken, twice over, and hostile headers."""
    folder = tmp_path_factory.mktemp("mixed")
    few = {path: m for path, m in SPEC.modules.items() if "down_blocks.1.attentions.0" in path}
    list(write_mixed_catalog(replace(SPEC, modules=few), folder, 10 * len(BROKEN)))
    for name, text in HEADERS.items():
        raw = text.encode("utf-8", "surrogateescape")
        for again in ("", " again"):
            file = folder / f"{name}{again}.safetensors"
            file.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
    return folder


HEADERS: dict[str, str] = {
    "plain": '{"a":%s}',
    "indented": '{  "a":  %s  }',
    "blanks at the end": '{"a":%s}  \n\t ',
    "blanks before": '  {"a":%s}',
    "strings": '{"__metadata__":{"x":"1","license":"cc-by-nd-4.0"},"a":%s}',
    "strings last": '{"a":%s,"__metadata__":{"x":"1"}}',
    "no strings": '{"__metadata__":null,"a":%s}',
    "an array": '{"__metadata__":[],"a":%s}',
    "an array of pairs": '{"__metadata__":[["x","1"]],"a":%s}',
    "a number": '{"__metadata__":{"x":1},"a":%s}',
    "twice": '{"a":%s,"a":%s}',
    "strings twice": '{"__metadata__":{},"a":%s,"__metadata__":{}}',
    "a string twice": '{"__metadata__":{"x":"1","x":"2"},"a":%s}',
    "escaped twice": r'{"a":%s,"\u0061":%s}',
    "a field twice": '{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}',
    "no object": "[%s]",
    "more behind": '{"a":%s}{}',
    "no end": '{"a":%s',
    "deep": '{"a":' * 3000,
    "deep strings": '{"__metadata__":{"x":' + "[" * 3000,
    "no text": '{"a\udcff":%s}',
    "a half": r'{"__metadata__":{"x":"\ud800"},"\ud800":%s}',
    "a true": '{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
    "a fraction": '{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}',
    "below zero": '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    "backwards": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
    "far": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,%s]}}' % ("9" * 900),
    "many axes": '{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}',
    "an odd dtype": '{"a":{"dtype":"F{}","shape":[1],"data_offsets":[0,4]}}',
    "a long dtype": '{"a":{"dtype":"%s","shape":[1],"data_offsets":[0,4]}}' % ("F" * 1200),
    "a long name": '{"%s":ENTRY}' % ("a" * 600),
    "a bell": r'{"a\u0007":%s}',
    "not the last": '{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
    "a constant": '{"a":NaN}',
    "another field": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}',
    "a field less": '{"a":{"dtype":"F32","shape":[1]}}',
    "nothing": "{}",
    "strings alone": '{"__metadata__":{"x":"1"}}',
}
HEADERS = {
    name: text.replace("%s", ENTRY).replace("ENTRY", ENTRY) for name, text in HEADERS.items()
}


def records(pair: BasePair, folder: Path, *, together: bool) -> list[CatalogRecord]:
    """What is said of the files of a folder, looked at by one scanner or each by its own."""
    items = expand([folder])
    shared = Scanner(pair, COPY, Writing())
    one = (
        (shared.scan(items),)
        if together
        else (Scanner(pair, COPY, Writing()).scan([item]) for item in items)
    )
    return [found.record for found in chain.from_iterable(one)]


@pytest.fixture
def the_slow_way(monkeypatch: pytest.MonkeyPatch):
    """No header is decoded whole, and no table is kept."""
    monkeypatch.setattr(safetensors_header, "SMALL", -1)
    monkeypatch.setattr(header_tables, "KEPT", -1)


def test_files_together_are_judged_as_each_alone(mixed: Path, pair: BasePair, request):
    fast = records(pair, mixed, together=True)
    request.getfixturevalue("the_slow_way")
    slow = records(pair, mixed, together=False)
    assert len(fast) > 10 * len(BROKEN) + len(HEADERS)
    seen = {r.reason for r in fast}
    assert seen > {None, "truncated", "not-safetensors", "incomplete-pair", "no-matching-module"}
    assert seen > {"pickle-refused", "archive", "duplicate-key", "header-too-large"}
    assert fast == slow


def looked_at(file: Path) -> tuple[object, ...]:
    try:
        header = read_header(file)
    except BadHeader as bad:
        return bad.code, str(bad)
    return header.tensors, header.metadata, header.body


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_decoded_whole_is_as_one_taken_apart(mixed: Path, name: str, request):
    file = mixed / f"{name}.safetensors"
    fast = looked_at(file)
    request.getfixturevalue("the_slow_way")
    assert fast == looked_at(file)


def test_most_headers_are_decoded_whole(mixed: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise AssertionError("taken apart")

    monkeypatch.setattr(safetensors_header, "_parse", fails)
    monkeypatch.setattr(safetensors_header, "_strings", fails)
    plain = mixed / "strings.safetensors"
    assert read_header(plain).metadata == {"x": "1", "license": "cc-by-nd-4.0"}
    assert HeaderTables().digest(plain)[1] == read_header(plain).metadata
    with pytest.raises(AssertionError, match="taken apart"):
        read_header(mixed / "indented.safetensors")


def test_blanks_at_the_end_and_strings_make_no_other_table(mixed: Path):
    tables = HeaderTables()
    alike = {tables.digest(mixed / f"{n}.safetensors")[0] for n in ("plain", "blanks at the end")}
    assert len(alike) == 1
    assert tables.digest(mixed / "not the last.safetensors")[0] not in alike


@pytest.mark.parametrize("kept", [header_tables.KEPT, 100, -1])
def test_tables_have_the_same_digest_however_many_are_kept(mixed: Path, monkeypatch, kept: int):
    files = sorted(mixed.glob("*.safetensors"))

    def digests(tables: HeaderTables) -> list[object]:
        found: list[object] = []
        for file in chain(files, files):
            try:
                found.append(tables.digest(file))
            except BadHeader as bad:
                found.append(str(bad))
        return found

    alone = [digest for _ in range(2) for file in files for digest in digests_of(file)]
    monkeypatch.setattr(header_tables, "KEPT", kept)
    assert digests(HeaderTables()) == alone


def digests_of(file: Path) -> list[object]:
    try:
        return [HeaderTables().digest(file)]
    except BadHeader as bad:
        return [str(bad)]


def test_each_table_is_looked_at_once(tmp_path: Path, pair: BasePair, monkeypatch):
    for n in range(6):
        write(tmp_path / f"{n}.safetensors", n, (4 * (1 + n % 2),))
    seen = []
    real = scan_module.outline_adapter
    monkeypatch.setattr(
        scan_module, "outline_adapter", lambda *a, **k: seen.append(a) or real(*a, **k)
    )
    assert len(records(pair, tmp_path, together=True)) == 6
    assert len(seen) == 2


def hollow(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A base model of a published form whose file is a hole."""
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir(parents=True)
    with file.open("wb") as holes:
        holes.write(len(text).to_bytes(8, "little") + text)
        holes.truncate(8 + len(text) + end)
    return path


def test_what_a_header_says_of_an_earlier_migration_is_that_file_s_alone(tmp_path: Path):
    table = unet_table(CONFIGS["sdxl"])
    sdxl = load_base_model(hollow(tmp_path / "sdxl", table))
    other = load_base_model(hollow(tmp_path / "other", table))
    ssd = spec_from_config(CONFIGS["ssd-1b"], name="ssd-1b")
    modules = tuple(
        LoraModule(
            path, np.ones((1, shape[1]), np.float16), np.ones((shape[0], 1), np.float16), 1.0
        )
        for path, shape in ((m.path, m.shape) for m in ssd.modules.values())
        if path.endswith("attn2.to_k")
    )
    said = {"prolora": '{"architecture": "sdxl"}'}
    folder = tmp_path / "in"
    for name, metadata in (("a", {}), ("b", said), ("c", {})):
        adapter = Adapter(modules, "diffusers", metadata=metadata)
        save_adapter(adapter, folder / f"{name}.safetensors", base=ssd)
    pair = BasePair(sdxl, other, FolderStore(tmp_path / "store"))
    told = {r.input[0]: r.reason for r in records(pair, folder, together=True)}
    assert told == {"a": "wrong-base", "b": None, "c": "wrong-base"}
