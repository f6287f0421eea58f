"""Adapters of diffusion transformers from base to base: diffusers writes, ours moves, it fuses."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference
import torch
from safetensors.numpy import load_file, save_file
from transformer_nets import (
    KINDS,
    Tensors,
    added_in_diffusers,
    built,
    original_shapes,
    pairs,
    shapes,
    written_by_diffusers,
)

from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Skip
from prolora_jax.verification.file import verify_file

pytestmark = pytest.mark.usefixtures("little_optimized")

_FIRST_BLOCK = re.compile(r"(blocks|layers)\.0\.")
RULE = ("rank", 8)
LAW = 1e-5
"""Of a float32 result against float64 formulas, relative to the update."""


class Pair(NamedTuple):
    """Two base models and an adapter of the first, on the disk and by diffusers."""

    family: str
    source: Path
    target: Path
    adapter: Path
    source_weights: Tensors
    target_net: Any
    given: Tensors


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return made(request.param, tmp_path_factory.mktemp(request.param))


def made(family: str, folder: Path) -> Pair:
    source, target = built(family), built(family, seed=1)
    weights = {name: source.get_submodule(name).weight.detach().numpy() for name in shapes(family)}
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        ours = source.state_dict()
        for name, tensor in target.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator) * ours[name].std(correction=0)
            tensor.copy_(ours[name] + 0.1 * noise)
    source.save_pretrained(folder / "source" / "transformer")
    target.save_pretrained(folder / "target" / "transformer")
    weights = {name: weight.astype(np.float64) for name, weight in weights.items()}
    # Of one family all of the net; of the others a block of each kind, for the compiler's sake.
    taken = [n for n in shapes(family) if family == "flux2" or _FIRST_BLOCK.search(n)]
    tensors, _ = written_by_diffusers(family, source, target_modules=taken)
    save_file(tensors, folder / "adapter.safetensors")
    given = {
        name: tensors[f"transformer.{name}.lora_B.weight"].astype(np.float64)
        @ tensors[f"transformer.{name}.lora_A.weight"].astype(np.float64)
        for name in taken
    }
    places = folder / "source", folder / "target", folder / "adapter.safetensors"
    return Pair(family, *places, weights, target.double(), given)


@pytest.mark.parametrize("method", reference.ARMS)
def test_every_method_is_its_dense_formula(pair: Pair, tmp_path: Path, method: Any) -> None:
    out = tmp_path / "out.safetensors"
    options = MigrationOptions(method=method, min_similarity=-1.0, basis_rank="rank=8")
    report = migrate_file(pair.adapter, pair.source, pair.target, out, options).report
    assert {skipped.reason for skipped in report.skipped} <= {Skip.NOTHING_LEFT}
    targets = {
        name: pair.target_net.get_submodule(name).weight.detach().numpy().copy()
        for name in pair.given
    }
    found = added_in_diffusers(pair.family, pair.target_net, load_file(out))
    assert len(found) == len(report.modules) == len(pair.given) - len(report.skipped)
    for name, update in pair.given.items():
        source, target = pair.source_weights[name], targets[name]
        spectra = [np.linalg.svd(weight, compute_uv=False) for weight in (source, target)]
        ranks = reference.pair_ranks(spectra[0], spectra[1], RULE)
        bases = reference.pair_of_weights(source, target, *ranks)
        expected = reference.project(method, bases, update)
        got = found.get(name, np.zeros_like(update))
        error = np.linalg.norm(got - expected) / np.linalg.norm(update)
        assert error < LAW, (name, error)
    assert verify_file(out).ok
