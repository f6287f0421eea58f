"""A base model and its own packed twin: what would be moved there is copied."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from packed_fixtures import fixture
from safetensors.torch import load_file, save_file
from toy_pair import make_files

import prolora_jax as pl
from prolora_jax.errors import BaseModelError
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers.tensors import read_tensors, write_tensors
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.nearness import PACKED_TWIN, TWIN_COSINE, is_twin
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.file import verify_file
from prolora_jax.verification.weights import dense_update

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


def packed(model: str | Path, place: Path) -> Path:
    """A UNet with every weight in floats of 8 bits, and a scale for each row."""
    (file,) = Path(model).rglob("*.safetensors")
    tensors, _ = read_tensors(file, error=BaseModelError)
    found = {}
    for key, array in tensors.items():
        if not key.endswith(".weight") or array.ndim < 2:
            found[key] = array
            continue
        rows = array.astype(np.float32).reshape(len(array), -1)
        scale = np.abs(rows).max(axis=1, keepdims=True) / 448
        found[key] = (rows / scale).astype(E4M3).reshape(array.shape)
        name = key.removesuffix(".weight")
        found[f"{name}.weight_scale"] = scale.reshape(-1, *(1,) * (array.ndim - 1))
    write_tensors(place, found)
    return place


@pytest.mark.parametrize(
    ("numbers", "twin"),
    [
        ((0.0, 1.0, 1.0), True),
        ((2 - 2 * TWIN_COSINE - 1e-9, 1.0, 1.0), True),
        ((2 - 2 * TWIN_COSINE + 1e-6, 1.0, 1.0), False),
        ((1.0, 1.0, 4.0), True),  # twice as long, the same direction
        ((0.0, 0.0, 0.0), False),
        ((np.nan, 1.0, 1.0), False),
        ((np.inf, 1.0, np.inf), False),
        ((1.0, np.nan, 1.0), False),
    ],
)
def test_what_a_twin_is(numbers: tuple[float, float, float], twin: bool):
    assert is_twin(*numbers) is twin


def test_a_twin_is_copied_and_verified(tmp_path: Path):
    files = make_files(tmp_path / "toy")
    twin = packed(files.source, tmp_path / "twin.safetensors")
    out = tmp_path / "out.safetensors"
    report = pl.migrate_file(files.adapter, files.source, twin, out).report
    assert report.modules
    assert not report.skipped
    assert all(PACKED_TWIN in module.flags for module in report.modules)
    given, written = pl.load_adapter(files.adapter), pl.load_adapter(out)
    for before, after in zip(given.modules, written.modules, strict=True):
        assert_allclose(dense_update(after), dense_update(before), rtol=1e-5, atol=1e-6)  # float16
    assert verify_file(out).ok
    said = tmp_path / "out.safetensors.report.json"
    said.write_text(said.read_text().replace(f'"{PACKED_TWIN}"', '"identical"', 1))
    assert not verify_file(out).ok


def test_who_wants_it_projected(tmp_path: Path):
    files = make_files(tmp_path / "toy")
    twin = load_base_model(packed(files.source, tmp_path / "twin.safetensors"))
    source, adapter = load_base_model(files.source), pl.load_adapter(files.adapter)
    options = MigrationOptions(identical="project")
    report = pl.migrate(adapter, source, twin, options)[1]
    assert {str(module.action) for module in report.modules} == {"project"}
    assert not any(PACKED_TWIN in module.flags for module in report.modules)


def test_relatives_are_twins_where_their_weights_say_so(tmp_path: Path):
    """Of a packed relative: by cosine, and never where nothing is packed."""
    files = make_files(tmp_path / "toy")
    source, plain = load_base_model(files.source), load_base_model(files.target)
    relative = load_base_model(packed(files.target, tmp_path / "relative.safetensors"))
    store = FolderStore(tmp_path / "store")
    pairs = BasePair(source, relative, store).matching().pairs
    measures = BasePair(source, relative, store).measure(pairs, MigrationOptions())
    cosines = {}
    for path, source_path in pairs.items():
        a = source.matrix(source_path).astype(np.float64).reshape(-1)
        b = relative.matrix(path).astype(np.float64).reshape(-1)
        cosines[path] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert {p for p, m in measures.items() if m.twin} == {
        p for p, cosine in cosines.items() if cosine >= TWIN_COSINE
    }
    assert 0 < sum(m.twin for m in measures.values()) < len(measures)
    unpacked = BasePair(source, plain, store).measure(pairs, MigrationOptions())
    assert not any(m.twin for m in unpacked.values())


def test_factors_on_an_nf4_twin_are_the_input_s_bytes(tmp_path: Path):
    """Floats as far from what bitsandbytes unpacks as 4 bits are from what was packed: 9 %.

    The scale is 1: another one goes into B.
    """
    made = fixture("nf4")
    generator = torch.Generator().manual_seed(0)
    tensors, pairs = {}, {}
    for path, floats in made.floats.items():
        noise = torch.randn(floats.shape, generator=generator) * floats.float().std()
        tensors[f"{path}.weight"] = (floats.float() + 0.09 * noise).to(torch.bfloat16)
        out, inner = floats.shape
        for name, shape in {"A": (3, inner), "B": (out, 3)}.items():
            numbers = torch.randn(shape, generator=generator).to(torch.bfloat16)
            pairs[f"base_model.model.{path}.lora_{name}.weight"] = numbers
    save_file(tensors, tmp_path / "source.safetensors")
    (tmp_path / "given").mkdir()
    save_file(pairs, tmp_path / "given" / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": "all-linear"}
    (tmp_path / "given" / "adapter_config.json").write_text(json.dumps(said))
    given = tmp_path / "given", tmp_path / "source.safetensors", made.file, tmp_path / "out"
    report = pl.migrate_file(*given).report
    assert [m.flags for m in report.modules] == [(PACKED_TWIN,)] * len(made.floats)
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert written.keys() == pairs.keys()
    assert all(torch.equal(written[key], numbers) for key, numbers in pairs.items())
