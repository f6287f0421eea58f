"""Checkpoints of EasyDeL's, written here by the description in `io/containers/indexed_tree.py`. By
hand, EasyDeL 0.3.0 with eformer 0.0.99.12 has built, adapted (rank 3) and saved a small Llama,
Mistral, Qwen 2 and Qwen 3 with transformers' weights: what is read of their checkpoints gives their
logits to 5e-3 of 2, where their base models come within 2e-3 of transformers'."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
from jax_trees import WIDE, base_model
from language_models import merged

from prolora_jax.errors import AdapterRefused
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions

COPY = MigrationOptions(method="copy")
Q, UP, HEAD = "model/layers/1/self_attn/q_proj", "model/layers/0/mlp/up_proj", "lm_head"
WIDTHS = {Q: (32, 48, 3), UP: (32, 48, 3), HEAD: (32, 40, 2)}


def written(folder: Path, arrays: dict[str, np.ndarray], model_type: str = "llama") -> Path:
    """A checkpoint: each array a zarr folder, and an index of them."""
    listed = []
    for place, array in arrays.items():
        path = f"model/{place}"
        listed.append({"path": path, "shape": array.shape, "dtype": str(array.dtype)})
        store = {"driver": "file", "path": f"{folder}/{path}/"}
        spec = {"driver": "zarr", "kvstore": store}
        metadata = {"compressor": {"id": "zstd", "level": 1}, "chunks": array.shape}
        opened = tensorstore.open(
            {**spec, "metadata": metadata}, create=True, dtype=array.dtype, shape=array.shape
        )
        opened.result().write(array).result()
    index = {"format": "tensorstore", "version": "0.0.99.12", "prefixes": {"model": listed}}
    folder.mkdir(exist_ok=True)
    (folder / "tensorstore_index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def factors() -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(4)
    found = {}
    for place, (width, out, rank) in WIDTHS.items():
        found[f"{place}/base_module/kernel"] = np.zeros((width, out), np.float32)
        found[f"{place}/lora_a"] = drawn.normal(size=(width, rank)).astype(np.float32)
        found[f"{place}/lora_b"] = drawn.normal(size=(rank, out)).astype(np.float32)
    return found


def test_what_is_added_is_a_times_b_and_no_scale(tmp_path: Path) -> None:
    net, given = base_model("Llama", **WIDE), factors()
    net.save_pretrained(tmp_path / "base")
    adapter = written(tmp_path / "run-7", given)
    before = {key: value.numpy().copy() for key, value in net.state_dict().items()}
    found = migrate_file(adapter, tmp_path / "base", tmp_path / "base", tmp_path / "out", COPY)
    assert len(found.report.modules) == 3
    after = merged(net, tmp_path / "out").state_dict()
    changed = {key for key, value in before.items() if (after[key].numpy() != value).any()}
    assert changed == {f"{place.replace('/', '.')}.weight" for place in WIDTHS}
    for place in WIDTHS:
        key = f"{place.replace('/', '.')}.weight"
        wanted = (given[f"{place}/lora_a"] @ given[f"{place}/lora_b"]).T
        np.testing.assert_allclose(after[key].numpy() - before[key], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "model_type", "words"),
    [
        ({}, "gpt_oss", "model_type 'gpt_oss' in config.json; expected one of llama, mistral"),
        ({f"{Q}/lora_b": None}, "llama", r"q_proj: found lora_a of a pair in shapes \(32, 3\) and"),
        (
            {f"{UP}/lora_a": (2, 32, 3)},
            "llama",
            r"up_proj: found lora_[ab] of a pair in shapes \(2, ",
        ),
        ({f"{UP}/lora_a": (32, 4)}, "llama", r"expected \(in, rank\) and \(rank, out\)"),
    ],
)
def test_what_is_not_known_exactly_is_refused(
    change: dict[str, Any], model_type: str, words: str, tmp_path: Path
) -> None:
    arrays = factors()
    for place, shape in change.items():
        del arrays[place]
        if shape is not None:
            arrays[place] = np.ones(shape, np.float32)
    with pytest.raises(AdapterRefused, match=words):
        load_adapter(written(tmp_path / "run-7", arrays, model_type))


def test_a_model_without_factors_is_no_adapter(tmp_path: Path) -> None:
    only = {place: array for place, array in factors().items() if "lora" not in place}
    with pytest.raises(AdapterRefused, match="a model of EasyDeL.s without factors; expected"):
        load_adapter(written(tmp_path / "run-7", only))


def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "run-7", factors())
    index = json.loads((folder / "tensorstore_index.json").read_text())
    index["prefixes"]["model"][0]["path"] = "model/../../lora_a"
    (folder / "tensorstore_index.json").write_text(json.dumps(index))
    with pytest.raises(AdapterRefused, match=r"found the place model/\.\./\.\./lora_a .*EasyDeL"):
        load_adapter(folder)


@pytest.mark.parametrize("damage", ["cut", "lost", "linked"])
def test_a_damaged_array_is_refused(damage: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "run-7", factors())
    array = folder / "model" / Q / "lora_a"
    if damage == "cut":
        (array / ".zarray").write_text("{")
    elif damage == "lost":
        (array / "0.0").unlink()
    else:
        array.rename(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/.zarray").unlink()
        os.mkfifo(tmp_path / "elsewhere/.zarray")
        array.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterRefused, match="its arrays cannot be read .* that EasyDeL wrote"):
        load_adapter(folder)
