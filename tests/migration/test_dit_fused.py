"""Fused layers of diffusion transformers that move whole, by a dense reference of all their rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference
import torch
from safetensors.numpy import load_file, save_file
from transformer_nets import (
    Tensors,
    added_in_diffusers,
    built,
    cut_by_map,
    dense,
    original_shapes,
    pairs,
    row_map,
)

from prolora_jax.errors import UsageError
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.opening import open_pair
from prolora_jax.migration.single import make_plan
from prolora_jax.plans.options import BadOption, MigrationOptions
from prolora_jax.verification.file import verify_file

pytestmark = pytest.mark.usefixtures("little_optimized")

QKV, LINEAR1, PLAIN = (
    "double_blocks.0.img_attn.qkv",
    "single_blocks.0.linear1",
    "single_blocks.0.linear2",
)
KEEP = {"fused": "keep", "min_similarity": -1.0, "basis_rank": "rank=8"}
RULE = ("rank", 8)
LAW = 1e-5
"""Of a float32 result against float64 formulas, relative to the update."""


class Pair(NamedTuple):
    """Two base models on the disk, the authors' weights of each, and an adapter of the first."""

    source: Path
    target: Path
    adapter: Path
    weights: tuple[Tensors, Tensors]
    net: Any
    given: Tensors


def authors_weights(net: Any, names: Mapping[str, tuple[int, int]]) -> Tensors:
    """Weights of the authors' layers, by the rows that diffusers' converters have."""
    found = {name: np.zeros(shape) for name, shape in names.items()}
    for name, (original, segments) in row_map("flux").items():
        if original in found:
            weight = net.get_submodule(name).weight.detach().numpy()
            (first, end), *_ = segments or ((0, len(weight)),)
            found[original][first:end] = weight
    return found


def as_kohya(given: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Tensors:
    tensors = {}
    for name, (down, up) in given.items():
        stem = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        tensors[f"{stem}.alpha"] = np.array(2.0, np.float32)
    return tensors


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("fused")
    source, target = built("flux"), built("flux")
    with torch.no_grad():
        for tensor in target.state_dict().values():
            tensor += 0.1 * tensor.std(correction=0) * torch.randn(tensor.shape)
    source.save_pretrained(folder / "source" / "transformer")
    target.save_pretrained(folder / "target" / "transformer")
    layers = {name: original_shapes("flux")[name] for name in (QKV, LINEAR1, PLAIN)}
    given = pairs(layers)
    save_file(as_kohya(given), folder / "in.safetensors")
    weights = authors_weights(source, layers), authors_weights(target, layers)
    places = folder / "source", folder / "target", folder / "in.safetensors"
    return Pair(*places, weights, target.double(), dense(given, 0.5))


def expected(pair: Pair, method: Any) -> Tensors:
    found = {}
    for name, update in pair.given.items():
        source, target = (weights[name] for weights in pair.weights)
        spectra = [np.linalg.svd(weight, compute_uv=False) for weight in (source, target)]
        ranks = reference.pair_ranks(spectra[0], spectra[1], RULE)
        bases = reference.pair_of_weights(source, target, *ranks)
        found[name] = reference.project(method, bases, update)
    return found


@pytest.mark.parametrize("method", ["prolora", "prolora-full"])
def test_a_kept_layer_is_the_dense_formula_of_all_its_rows(
    pair: Pair, tmp_path: Path, method: Any
) -> None:
    out = tmp_path / "out.safetensors"
    options = MigrationOptions(method=method, **KEEP)
    report = migrate_file(pair.adapter, pair.source, pair.target, out, options).report
    assert {m.path for m in report.modules} == {
        f"transformer.{QKV}",
        f"transformer.{LINEAR1}",
        "transformer.single_transformer_blocks.0.proj_out",
    }
    assert report.flags == ()
    wanted = cut_by_map("flux", expected(pair, method))
    found = added_in_diffusers("flux", pair.net, load_file(out))
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        error = np.linalg.norm(found[name] - update) / np.linalg.norm(update)
        assert error < LAW, (name, error)
    ranks = {len(array) for key, array in load_file(out).items() if "lora_A" in key}
    assert ranks == {4 if method == "prolora-full" else 8}
    checked = verify_file(out)
    assert checked.ok, checked
