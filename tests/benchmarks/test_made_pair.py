"""The made pair and catalog are what they say: complete, planted, readable, the same every time."""

import json
import runpy
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open

from prolora_jax.architectures.identify import identified, published_spec, spec_from_config
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.benchmarks import made_models
from prolora_jax.benchmarks.diffusers_config import diffusers_config
from prolora_jax.benchmarks.made_models import WEIGHTS_FILE, real_pair, source_tensor, target_tensor
from prolora_jax.errors import OutputError, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers.streamed import write_streamed
from prolora_jax.io.containers.tensors import TensorFile
from prolora_jax.method.basis import BasisRule
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_checkpoint_pair.py"
main = runpy.run_path(str(SCRIPT))["main"]
NETS = ("sdxl", "ssd-1b")


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made")
    main([str(out), "--quick"])
    return out


@pytest.mark.parametrize("net", NETS)
def test_both_models_open_in_other_libraries(made, net):
    unet: Any = UNet2DConditionModel.from_pretrained(made / net / "unet", variant="fp16")
    with safe_open(made / net / "unet" / WEIGHTS_FILE, framework="pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = unet.state_dict()
    assert state.keys() == stored.keys()
    assert all(t.dtype == torch.float16 for t in stored.values())
    assert all(torch.equal(state[key], t.to(state[key].dtype)) for key, t in stored.items())
    assert all(t.isfinite().all() and t.std() > 0 for t in stored.values())


@pytest.mark.parametrize("net", NETS)
def test_every_tensor_of_the_published_models_is_made(net):
    pair = real_pair()
    made_net = pair.source if net == "sdxl" else pair.target
    table = unet_table(made_net.config)
    assert len(table) == {"sdxl": 1680, "ssd-1b": 944}[net]
    spec = identified(spec_from_config(made_net.config, name=net))
    assert spec.architecture == net
    assert spec.modules == published_spec(net).modules
    # Diffusers builds the same from config.json; on the meta device it takes no memory.
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(
            diffusers_config(made_net.config, head_width=64)
        )
    assert {key: tuple(t.shape) for key, t in unet.state_dict().items()} == table


def test_planted_blocks_of_the_real_pair():
    pair = real_pair(seed=3)
    depths = {slot: len(blocks) for slot, blocks in pair.planted.items()}
    assert sum(depths.values()) == 34
    assert depths["unet.up_blocks.1.attentions.1"] == 1
    assert pair.planted["unet.up_blocks.0.attentions.2"] == tuple(range(10))
    pruned = pair.planted["unet.down_blocks.2.attentions.0"]
    assert len(pruned) == 4
    assert pruned == tuple(sorted(set(pruned)))
    assert pruned != (0, 1, 2, 3)
    assert max(pruned) < 10
    assert pair.planted != real_pair(seed=4).planted


@pytest.mark.parametrize("score", ["cosine", "similarity"])
def test_planted_correspondence_is_recovered(made, score):
    source, target = (load_base_model(made / net) for net in NETS)
    found = BasePair(source, target).matching(options=MigrationOptions(match_score=score))
    planted = json.loads((made / "planted.json").read_text())
    assert found.matched_by == "block"
    assert found.pairs == planted["modules"]
    assert not any(a.weak for a in found.alignments)
    blocks = {a.slot: [s for s, _ in a.pairs] for a in found.alignments if a.level == "blocks"}
    assert blocks == planted["slots"]


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_noise_is_as_large_as_asked_for(noise):
    pair = made_models.tiny_pair(noise=noise)
    key = "up_blocks.0.attentions.0.transformer_blocks.1.ff.net.0.proj.weight"
    origin = made_models.origin(pair, f"unet.{key}").removeprefix("unet.")
    assert origin != key
    copied = source_tensor(pair, origin).astype(np.float64)
    difference = target_tensor(pair, key) - copied
    relative = np.linalg.norm(difference) / np.linalg.norm(copied)
    assert relative == pytest.approx(noise, rel=0.03)


@pytest.mark.parametrize(("out", "width"), [(640, 640), (640, 2048), (2560, 320)])
def test_energy_is_spread_as_in_trained_weights(out, width):
    weight = made_models._matrix(made_models.generator("spectrum"), out, width)
    s = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    assert 0.45 < BasisRule("energy", 0.9).retained(s) / len(s) < 0.75
    assert 0.02 < s[0] ** 2 / np.sum(s**2) < 0.12
    assert weight.std() == pytest.approx(made_models.STD, rel=0.02)


def test_every_adapter_is_what_the_catalog_says(made):
    spec: BaseModelSpec = load_base_model(made / "sdxl").spec
    records = json.loads((made / "catalog.json").read_text())
    assert len(records) == 12
    assert {path.name for path in (made / "catalog").iterdir()} == {r["name"] for r in records}
    for record in records:
        adapter = load_adapter(made / "catalog" / record["name"], base=spec)
        assert adapter.format == record["format"]
        assert list(adapter.ranks) == record["ranks"]
        assert len(adapter.modules) == record["modules"]
        dtype = np.dtype(getattr(ml_dtypes, record["dtype"], record["dtype"]))
        assert {m.down.dtype for m in adapter.modules} == {dtype}
        assert {m.up.dtype for m in adapter.modules} == {dtype}
        kinds = {"attn": ".attn", "attn2": ".attn2.", "attn+ff": "."}[record["layers"]]
        assert all(kinds in module.path for module in adapter.modules)
        # A single file has no field for the scale in two of the formats: it is in the factor.
        kept = record["format"].startswith("kohya") or not record["name"].endswith("safetensors")
        assert {m.scale for m in adapter.modules} == {record["alpha"] if kept else 1.0}
        norms = [module.norm for module in adapter.modules]
        assert len(set(norms)) == len(norms)
    for field in ("dtype", "layers", "alpha"):
        assert len({record[field] for record in records}) == 3
    assert any(len(record["ranks"]) == 2 for record in records)


def test_real_attention_adapter_has_560_modules():
    spec = published_spec("sdxl")
    assert sum(module.kind_is("attn") for module in spec.modules.values()) == 560


def test_same_seed_same_bytes(made, tmp_path):
    main([str(tmp_path / "again"), "--quick", "--adapters", "6"])
    main([str(tmp_path / "other"), "--quick", "--adapters", "6", "--seed", "1"])
    first, again, other = (hashes(f) for f in (made, tmp_path / "again", tmp_path / "other"))
    again.pop("catalog.json")  # shorter, as asked for
    assert again.items() <= first.items()
    shared = {name for name in other.keys() & first.keys() if other[name] == first[name]}
    # Shapes and scales have no seed.
    assert {Path(name).name for name in shared} <= {"config.json", "adapter_config.json"}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_streamed_file_is_read_by_the_library(tmp_path, dtype):
    rng = np.random.default_rng(0)
    tensors = {
        "b": rng.normal(size=(3, 5)).astype(dtype),
        "a": rng.normal(size=(5, 4)).astype(dtype).T,  # a view
        "empty": np.zeros((0, 2), dtype),
        "scalar": np.asarray(1.5, dtype),
    }
    shapes = {key: array.shape for key, array in tensors.items()}
    path = tmp_path / "new" / "file.safetensors"
    write_streamed(path, shapes, np.dtype(dtype), tensors.__getitem__, {"format": "pt"})
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(tensors)
        assert file.metadata() == {"format": "pt"}
        for key, array in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(key), array)
    assert (path.stat().st_size - sum(a.nbytes for a in tensors.values())) % 8 == 0


def test_streamed_numbers_are_taken_by_the_device_where_they_are_mapped(tmp_path):
    """What a batch over a large pair rests on: gigabytes of operators are not copied."""
    path = tmp_path / "f.safetensors"
    for name in ("a", "a longer name", "x" * 61):
        write_streamed(path, {name: (8, 16)}, np.dtype(np.float32), lambda _: np.ones((8, 16), "f"))
        view = TensorFile(path, error=UsageError).view(name)
        assert jax.device_put(view).unsafe_buffer_pointer() == view.ctypes.data


def test_streamed_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.safetensors"
    shapes = {"a": (2,), "b": (2,)}

    def make(key: str) -> np.ndarray:
        return np.zeros(2 if key == "a" else 3, np.float16)

    with pytest.raises(ValueError, match=r"b: made as float16 \(3,\); announced as float16 \(2,\)"):
        write_streamed(path, shapes, np.dtype(np.float16), make)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "wall").touch()
    with pytest.raises(OutputError):
        write_streamed(tmp_path / "wall" / "f.safetensors", {}, np.dtype(np.float16), make)
