"""Adapters of diffusion transformers from base to base: diffusers writes, ours moves, it fuses."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
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
    cut_by_map,
    dense,
    original_shapes,
    pairs,
    shapes,
    written_by_diffusers,
)

import prolora_jax as pl
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.cli.main import main
from prolora_jax.errors import AdapterRefused, BaseModelError, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.method.basis import Basis
from prolora_jax.migration.experts import output_for
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Skip
from prolora_jax.subspaces.store import MemoryStore
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


@pytest.mark.proves(
    ("Flux.1", "Flux.2", "HunyuanVideo", "LTX-Video", "Qwen-Image", "SD 3.5", "Wan", "Z-Image"),
    "migrate",
    "diffusers writes and fuses, dense reference computes",
)
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


def moved(inputs: Path, source: Path, target: Path, out: Path, *more: str) -> int:
    """By the command, as people do; the exit code."""
    where = "--source", str(source), "--target", str(target), "--out", str(out)
    with pytest.raises(SystemExit) as ended:
        main(["migrate", str(inputs), *where, "--method", "copy", *more])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("pair", ["flux"], indirect=True)
def test_original_layers_come_in_and_go_out_by_the_command(pair: Pair, tmp_path: Path) -> None:
    given = pairs(original_shapes("flux"))
    tensors = {}
    for name, (down, up) in given.items():
        stem = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        tensors[f"{stem}.alpha"] = np.array(2.0, np.float32)
    save_file(tensors, tmp_path / "in.safetensors")
    out, native = tmp_path / "out.safetensors", tmp_path / "native.safetensors"
    assert moved(tmp_path / "in.safetensors", pair.source, pair.target, out) == 0
    wanted = cut_by_map("flux", dense(given, 0.5))
    found = added_in_diffusers("flux", pair.target_net, load_file(out))
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        np.testing.assert_allclose(found[name], update, atol=1e-6 * np.abs(update).max())
    options = "--format", "comfyui"
    assert moved(tmp_path / "in.safetensors", pair.source, pair.target, native, *options) == 0
    written = load_file(native)
    assert {key.partition(".lora")[0] for key in written} == {
        f"diffusion_model.{name}" for name in given
    }
    # One `down` for all parts of a layer: its rank stays.
    assert {len(array) for key, array in written.items() if "lora_A" in key} == {4}


def saved(net: Any, folder: Path, component: str = "transformer") -> Path:
    net.save_pretrained(folder / component)
    return folder


def test_the_image_branch_stays_behind_where_the_target_has_none(tmp_path: Path) -> None:
    # WanVideoWrapper 1710: keys of Wan 2.1's image branch are not in Wan 2.2, the others are.
    image = {"image_dim": 16, "added_kv_proj_dim": 24}
    source = saved(built("wan", **image), tmp_path / "source")
    target = saved(built("wan"), tmp_path / "target")
    layers = ("self_attn.q", "cross_attn.k_img", "cross_attn.v_img")
    given = pairs({f"blocks.{i}.{name}": (24, 24) for i in range(2) for name in layers})
    tensors = {}
    for name, (down, up) in given.items():
        stem = f"diffusion_model.{name}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    save_file(tensors, tmp_path / "in.safetensors")
    places = tmp_path / "in.safetensors", source, target, tmp_path / "out.safetensors"
    report = migrate_file(*places, MigrationOptions(method="copy", min_similarity=-1.0)).report
    assert {m.path for m in report.modules} == {
        f"transformer.blocks.{i}.attn1.to_q" for i in range(2)
    }
    assert {(s.source_path, s.reason) for s in report.skipped} == {
        (f"transformer.blocks.{i}.attn2.add_{x}_proj", Skip.REMOVED_IN_TARGET)
        for i in range(2)
        for x in "kv"
    }


def test_each_of_two_experts_gets_an_output_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved(built("wan"), tmp_path / "source")
    target = tmp_path / "target"
    nets = {"transformer": built("wan", seed=5), "transformer_2": built("wan", seed=6)}
    for component, net in nets.items():
        saved(net, target, component)
    tensors, wanted = written_by_diffusers("wan", built("wan"))
    save_file(tensors, tmp_path / "in.safetensors")
    adapter, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    assert moved(adapter, source, target, out, "--min-similarity", "-1") == 0
    for component, net in nets.items():
        own = tmp_path / f"out.{component}.safetensors"
        found = added_in_diffusers("wan", net.double(), load_file(own))
        assert found.keys() == wanted.keys()
        report = (tmp_path / f"out.{component}.safetensors.report.json").read_text()
        assert str(target / component) in report
    assert not out.exists()
    capsys.readouterr()
    again = "--min-similarity", "-1", "--json"
    assert moved(adapter, source, target, tmp_path / "b.safetensors", *again) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [r["target"]["location"] for r in reports] == [str(target / name) for name in nets]
    copy = MigrationOptions(method="copy")
    with pytest.raises(BaseModelError, match="found transformers transformer and transformer_2"):
        migrate_file(adapter, source, target, out, copy)
    # Nothing is written where one of the outputs may not be.
    (tmp_path / "c.transformer_2.safetensors").touch()
    places = adapter, source, target
    with pytest.raises(UsageError, match="c.transformer_2.safetensors"):
        pl.migrate_each(*places, tmp_path / "c.safetensors", copy)
    assert not (tmp_path / "c.transformer.safetensors").exists()
    kept = replace(copy, min_similarity=-1)
    written = pl.migrate_each(*places, tmp_path / "d.safetensors", kept)
    assert [done.output.name for done in written] == [f"d.{name}.safetensors" for name in nets]
    plans = pl.plan_each(*places, kept)
    assert [len(plan.steps) for plan in plans] == [len(d.report.modules) for d in written]
    with pytest.raises(UsageError, match="expected a plan for each"):
        pl.plan_each(*places, kept, plan=tmp_path / "plan.json")


def test_experts_whose_folders_are_links_have_the_names_of_the_links(tmp_path: Path) -> None:
    source, target = saved(built("wan"), tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    for seed, component in enumerate(("transformer", "transformer_2"), 5):
        saved(built("wan", seed=seed), tmp_path / component, "transformer")
        (target / component).symlink_to(tmp_path / component / "transformer")
    tensors, _ = written_by_diffusers("wan", built("wan"))
    save_file(tensors, tmp_path / "in.safetensors")
    copy = MigrationOptions(method="copy", min_similarity=-1.0)
    places = tmp_path / "in.safetensors", source, target, tmp_path / "out.safetensors"
    written = pl.migrate_each(*places, copy)
    names = ["out.transformer.safetensors", "out.transformer_2.safetensors"]
    assert [done.output.name for done in written] == names


def test_experts_of_the_hub_are_where_they_were_fetched_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = saved(built("wan"), tmp_path / "source"), tmp_path / "0123abcd"
    for seed, component in enumerate(("transformer", "transformer_2"), 5):
        saved(built("wan", seed=seed), target, component)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(target))
    tensors, _ = written_by_diffusers("wan", built("wan"))
    save_file(tensors, tmp_path / "in.safetensors")
    computed: list[str] = []
    put = MemoryStore.put

    def counted(self: MemoryStore, fingerprint: str, basis: Basis) -> None:
        computed.append(fingerprint)
        put(self, fingerprint, basis)

    monkeypatch.setattr(MemoryStore, "put", counted)
    options = MigrationOptions(min_similarity=-1.0)
    plans = pl.plan_each(tmp_path / "in.safetensors", source, "org/wan22", options)
    assert [plan.target for plan in plans] == ["wan22", "wan22"]
    # What is known of the source's weights is found once.
    layers = len(tensors) // 2
    assert len(computed) == len({*computed}) == 3 * layers
    places = tmp_path / "in.safetensors", source, "org/wan22", tmp_path / "out.safetensors"
    with pytest.raises(BaseModelError, match=rf"^org/wan22: .* its folder in {target} is the"):
        migrate_file(*places)


@pytest.mark.parametrize(
    ("out", "wanted"),
    [
        ("a.safetensors", "a.transformer_2.safetensors"),
        ("style_v1.0", "style_v1.0.transformer_2"),
        ("style_v1.0.SFT", "style_v1.0.transformer_2.SFT"),
        ("folder", "folder.transformer_2"),
    ],
)
def test_a_version_in_an_output_s_name_is_no_ending(out: str, wanted: str) -> None:
    spec = BaseModelSpec("wan22", {})
    assert output_for(Path(out), BaseModel(spec, "wan22/transformer_2", {})) == Path(wanted)


def test_a_folder_is_not_moved_to_two_experts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = saved(built("wan"), tmp_path / "source"), tmp_path / "target"
    for component in ("transformer", "transformer_2"):
        saved(built("wan"), target, component)
    tensors, _ = written_by_diffusers("wan", built("wan"))
    (tmp_path / "loras").mkdir()
    save_file(tensors, tmp_path / "loras" / "one.safetensors")
    assert moved(tmp_path / "loras", source, target, tmp_path / "out") == 2
    assert "needs an output of its own" in " ".join(capsys.readouterr().err.split())


def test_names_that_do_not_say_which_expert_are_refused(tmp_path: Path) -> None:
    both = tmp_path / "both"
    for component in ("transformer", "transformer_2"):
        saved(built("wan"), both, component)
    spec = load_base_model(both).spec
    (down, up) = pairs({"q": (24, 24)})["q"]
    name = "blocks.0.self_attn.q"
    save_file(
        {
            f"diffusion_model.{name}.lora_A.weight": down,
            f"diffusion_model.{name}.lora_B.weight": up,
        },
        tmp_path / "in.safetensors",
    )
    with pytest.raises(AdapterRefused, match="do not say which of transformer and transformer_2"):
        resolve(load_adapter(tmp_path / "in.safetensors"), spec)
    said = {f"transformer_2.{name}.lora_A.weight": down, f"transformer_2.{name}.lora_B.weight": up}
    save_file(said, tmp_path / "in.safetensors")
    (module,) = resolve(load_adapter(tmp_path / "in.safetensors"), spec).modules
    assert module.path == "transformer_2.blocks.0.attn1.to_q"


@pytest.mark.parametrize("pair", ["flux"], indirect=True)
def test_files_of_one_header_need_not_be_cut_alike(pair: Pair, tmp_path: Path) -> None:
    # Columns that a part of a fused layer does not use are left out: which, is a file's own matter.
    name, rank, rows = "double_blocks.0.img_attn.qkv", 6, 32
    stem, (down, up) = "lora_unet_double_blocks_0_img_attn_qkv", pairs({name: (96, 32)}, rank)[name]
    sparse = up * np.kron(np.eye(3), np.ones((rows, rank // 3))).astype(np.float32)
    (tmp_path / "in").mkdir()
    for number, whole in enumerate((up, sparse, 2 * up, 3 * sparse)):
        tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": whole}
        save_file(tensors, tmp_path / "in" / f"{number}.safetensors")
    assert moved(tmp_path / "in", pair.source, pair.target, tmp_path / "out") == 0
    for number, whole in enumerate((up, sparse, 2 * up, 3 * sparse)):
        found = load_file(next((tmp_path / "out").rglob(f"{number}.safetensors")))
        for i, part in enumerate("qkv"):
            key = f"transformer.transformer_blocks.0.attn.to_{part}.lora_"
            a, b = found[f"{key}A.weight"], found[f"{key}B.weight"]
            assert len(a) == (rank if number % 2 == 0 else rank // 3)
            np.testing.assert_allclose(b @ a, whole[rows * i : rows * (i + 1)] @ down, atol=1e-5)
