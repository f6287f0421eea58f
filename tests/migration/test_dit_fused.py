"""Fused layers of diffusion transformers moved whole, by a dense reference of all their rows."""

from collections.abc import Mapping
from dataclasses import replace
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
    base,
    built,
    cut_by_map,
    dense,
    original_shapes,
    pairs,
    row_map,
)

from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.spec import ModuleSpec
from prolora_jax.architectures.whole_layers import parts_of_layer, whole_layers
from prolora_jax.cli.main import main
from prolora_jax.errors import AdapterRefused, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.opening import open_pair
from prolora_jax.migration.single import make_plan
from prolora_jax.plans.options import BadOption, MigrationOptions
from prolora_jax.plans.plan import Action
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
            row = 0
            for first, end in segments or ((0, len(weight)),):
                found[original][first:end] = weight[row : row + end - first]
                row += end - first
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
    assert verify_file(out).ok


def test_kept_layers_keep_their_rank_in_the_authors_names_and_copies_their_numbers(
    pair: Pair, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    options = MigrationOptions(method="copy", **KEEP)
    migrate_file(pair.adapter, pair.source, pair.target, out, options, Writing("kohya"))
    given, written = load_file(pair.adapter), load_file(out)
    assert written.keys() == given.keys()
    for name in pair.given:
        stem = f"lora_unet_{name.replace('.', '_')}"
        down, up = written[f"{stem}.lora_down.weight"], written[f"{stem}.lora_up.weight"]
        assert down.shape == given[f"{stem}.lora_down.weight"].shape
        scale = float(written[f"{stem}.alpha"]) / len(down)
        np.testing.assert_allclose(scale * up @ down, pair.given[name], atol=1e-5)
    assert verify_file(out).ok


def test_layers_move_in_parts_where_the_target_has_none_alike_and_the_report_says_so(
    tmp_path: Path,
) -> None:
    # A target whose single blocks have a wider MLP has no `linear1` that is cut alike.
    spec = base("flux")
    wider = {
        path: ModuleSpec(path, (module.shape[0] + 32, module.shape[1]))
        if path.endswith("proj_mlp")
        else module
        for path, module in spec.modules.items()
    }
    source, target = whole_layers(spec, replace(spec, modules=wider))
    assert source.whole is not None
    assert target.whole is not None
    assert source.whole.keys() == target.whole.keys()
    assert {path.split(".")[1] for path in source.whole} == {"double_blocks"}
    tensors = as_kohya(pairs({name: original_shapes("flux")[name] for name in (QKV, LINEAR1)}))
    adapter = resolve(parse(tensors, {}, "given"), source)
    assert {module.path for module in adapter.modules} == {
        f"transformer.{QKV}",
        *(f"transformer.single_transformer_blocks.0.attn.to_{x}" for x in "qkv"),
        "transformer.single_transformer_blocks.0.proj_mlp",
    }
    assert adapter.flags == (f"in-parts: 1 layers, first {LINEAR1}",)
    assert resolve(adapter, source) == adapter


def test_kept_layers_follow_their_blocks_into_another_depth(pair: Pair, tmp_path: Path) -> None:
    # The target's second double block is the source's; its first one was put in.
    deeper = built("flux", seed=5, num_layers=3)
    own = deeper.state_dict()
    taken = {"0": "1", "1": "2"}
    with torch.no_grad():
        for name, tensor in built("flux").state_dict().items():
            levels = name.split(".")
            if levels[0] == "transformer_blocks":
                levels[1] = taken[levels[1]]
            own[".".join(levels)].copy_(tensor)
    deeper.save_pretrained(tmp_path / "target" / "transformer")
    out = tmp_path / "out.safetensors"
    report = migrate_file(
        pair.adapter, pair.source, tmp_path / "target", out, MigrationOptions(**KEEP)
    ).report
    found = {m.path: m.source_path for m in report.modules}
    moved = QKV.replace(".0.", ".1.")
    assert found[f"transformer.{moved}"] == f"transformer.{QKV}"
    assert found[f"transformer.{LINEAR1}"] == f"transformer.{LINEAR1}"
    assert {m.action for m in report.modules} == {Action.COPY}  # the weights are equal
    assert verify_file(out).ok


def test_a_folder_s_layers_are_kept_and_verified(pair: Pair, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.safetensors").write_bytes(pair.adapter.read_bytes())
    where = "--source", str(pair.source), "--target", str(pair.target), "--out", str(out)
    how = "--fused", "keep", "--min-similarity", "-1", "--basis-rank", "rank=8"
    with pytest.raises(SystemExit) as ended:
        main(["migrate", str(folder), *where, *how])
    assert not ended.value.code
    shared = (out / "pair.report.json").read_text()
    assert f"transformer.{QKV}" in shared
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(out)])
    assert not ended.value.code


def test_written_with_the_ranks_of_all_parts_is_in_the_report(pair: Pair, tmp_path: Path) -> None:
    names = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
    tensors = {}
    for name, (down, up) in pairs(dict.fromkeys(names, (32, 32))).items():
        stem = f"transformer.{name}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    save_file(tensors, tmp_path / "in.safetensors")
    places = tmp_path / "in.safetensors", pair.source, pair.target
    options, out = MigrationOptions(method="copy"), tmp_path / "out.safetensors"
    report = migrate_file(*places, out, options, Writing("comfyui")).report
    assert report.flags == (f"fused-ranks: 1 layers, first transformer.{QKV}",)
    assert {len(a) for key, a in load_file(out).items() if "lora_A" in key} == {12}
    assert verify_file(out).ok
    plain = tmp_path / "plain.safetensors"
    assert migrate_file(*places, plain, options).report.flags == ()
    told = Path(f"{out}.report.json")
    told.write_text(told.read_text().replace("fused-ranks: 1 layers", "fused-ranks: 2 layers"))
    assert not verify_file(out).ok


def test_what_cannot_be_is_refused(pair: Pair) -> None:
    with pytest.raises(BadOption, match="expected parts with --match module"):
        MigrationOptions(fused="keep", match="module")
    opened = open_pair(pair.source, pair.target)
    adapter = load_adapter(pair.adapter)
    with pytest.raises(UsageError, match="--fused keep: found base models opened for parts"):
        make_plan(adapter, opened, MigrationOptions(**KEEP))


def test_what_is_there_in_parts_and_whole_moves_in_parts(pair: Pair, tmp_path: Path) -> None:
    # XLabs' processors have the attention's rows of `linear1` alone, which no model has whole.
    (down, up), stem = pairs({"q": (96, 32)})["q"], "single_blocks.0.processor.qkv_lora"
    given = {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    save_file(given, tmp_path / "part.safetensors")
    options, out = MigrationOptions(**KEEP), tmp_path / "out.safetensors"
    places = pair.source, pair.target
    report = migrate_file(tmp_path / "part.safetensors", *places, out, options).report
    assert report.flags == (f"in-parts: 1 layers, first {LINEAR1}.qkv",)
    assert len(report.modules) == 3
    assert verify_file(out).ok
    # A sum of both is one of parts, where both have them; the other layers stay whole.
    merged, both = tmp_path / "merged.safetensors", [pair.adapter, tmp_path / "part.safetensors"]
    report = migrate_file(both, *places, merged, options, merge=True).report
    block = "transformer.single_transformer_blocks.0"
    assert {m.path for m in report.modules} == {
        f"transformer.{QKV}",
        f"{block}.proj_out",
        f"{block}.proj_mlp",
        *(f"{block}.attn.to_{x}" for x in "qkv"),
    }
    assert verify_file(merged).ok


def test_equal_twins_of_both_kinds_are_one() -> None:
    source, _ = whole_layers(base("flux"), base("flux"))
    down, up = pairs({QKV: original_shapes("flux")[QKV]})[QKV]
    tensors = as_kohya({QKV: (down, up)})
    names = [f"lora_unet_transformer_blocks_0_attn_to_{x}" for x in "qkv"]
    for name, rows in zip(names, np.split(up, 3), strict=True):
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": rows}
        tensors[f"{name}.alpha"] = np.array(2.0, np.float32)
    found = resolve(parse(tensors, {}, "given"), source).modules
    assert {m.path.rpartition(".")[2] for m in found} == {"to_q", "to_k", "to_v"}
    tensors[f"{names[0]}.lora_up.weight"] = 2 * up[:32]
    with pytest.raises(AdapterRefused, match="found twice with different numbers"):
        resolve(parse(tensors, {}, "given"), source)


def test_a_fused_weight_is_the_same_one_in_the_authors_file(pair: Pair, tmp_path: Path) -> None:
    weights = authors_weights(built("flux"), original_shapes("flux"))
    stored = {f"{name}.weight": weight.astype("f4") for name, weight in weights.items()}
    save_file(stored, tmp_path / "flux.safetensors")
    file, folder = load_base_model(tmp_path / "flux.safetensors"), load_base_model(pair.source)
    for name in (QKV, LINEAR1):
        path = f"transformer.{name}"
        np.testing.assert_array_equal(file.matrix(path), stored[f"{name}.weight"])
        np.testing.assert_array_equal(folder.matrix(path), stored[f"{name}.weight"])
        assert file.fingerprint(path) == folder.fingerprint(path)
        parts = parts_of_layer(folder.spec.layer_names.joined[path])
        biases = [folder.bias(part) for part in parts]
        np.testing.assert_array_equal(folder.bias(path), np.concatenate(biases))
