"""`--dora keep`: BA moves, the magnitude is recomputed on the target; peft and LyCORIS read it."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import builders
import numpy as np
import pytest
import torch
from builders import TINY_XL
from lycoris.wrapper import create_lycoris_from_weights
from other_algorithms import LAYERS, by_forward, by_lycoris, weights_of
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.catalog.catalog import run_catalog, scan_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.cli.main import run
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import BadOption, MigrationOptions
from prolora_jax.plans.report import DORA_KEPT
from prolora_jax.verification.file import verify_file

TARGETS = [path.removeprefix("unet.") for path in LAYERS]


class Toy(NamedTuple):
    """A base model, a relative of it, and DoRA files for it: of rows, of channels, and peft's."""

    source: Path
    target: Path
    rows: Path
    channels: Path
    peft: Path
    updates: dict[str, np.ndarray]
    """What `peft` changes the weights by, as peft merges it."""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("dora")
    unet = builders.build_unet(TINY_XL)
    unet.save_pretrained(folder / "source" / "unet")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in unet.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * parameter.std(correction=0) * noise)
    unet.save_pretrained(folder / "target" / "unet")
    for name, options in {"rows": {}, "channels": {"wd_on_output": False}}.items():
        tensors = by_lycoris("lora", dora_wd=True, **options).tensors
        save_file(tensors, folder / f"{name}.safetensors", {"ss_network_module": "lycoris.kohya"})
    updates = written_by_peft(folder / "peft")
    rows, channels = folder / "rows.safetensors", folder / "channels.safetensors"
    return Toy(folder / "source", folder / "target", rows, channels, folder / "peft", updates)


def written_by_peft(folder: Path) -> dict[str, np.ndarray]:
    config = LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_dora=True)
    model: Any = get_peft_model(builders.build_unet(TINY_XL), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = 0.3 * torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name:
                parameter.mul_(1.0 + random)
            elif "lora_" in name:
                parameter.copy_(random)
    model.save_pretrained(str(folder))
    return changed_by(model)


def changed_by(model: Any) -> dict[str, np.ndarray]:
    """What peft's merge adds to the weights."""
    before = weights_of(builders.build_unet(TINY_XL))
    merged = weights_of(model.merge_and_unload())
    return {path: merged[path].astype(np.float64) - before[path] for path in LAYERS}


def migrated(toy: Toy, file: Path, target: Path, out: Path, format="same", **options: Any):
    given: dict[str, Any] = {"dora": "keep", "match": "name"} | options
    how = MigrationOptions(**given)
    return migrate_file(file, toy.source, target, out, how, Writing(format=format))


def effective(file: Path, base: BaseModel) -> dict[str, np.ndarray]:
    """What a file of DoRA changes the weights of a base model by: the formula, dense, in loops."""
    adapter = load_adapter(file, base.spec, structured=True)
    assert not adapter.modules
    return {m.path: of_module(m, base) for m in adapter.structured}


def of_module(module: StructuredModule, base: BaseModel) -> np.ndarray:
    shape = base.spec.modules[module.path].shape
    parts = {name: array.astype(np.float64) for name, array in module.parts.items()}
    rank = parts["down"].shape[0]
    scale = 1.0 if module.alpha is None else module.alpha / rank
    added = scale * parts["up"].reshape(shape[0], rank) @ parts["down"].reshape(rank, -1)
    weight = base.matrix(module.path).astype(np.float64)
    whole = (weight + added).reshape(shape[0], shape[1], -1)
    magnitude = parts.get("magnitude", parts.get("row_magnitude"))
    assert magnitude is not None
    if "magnitude" in parts and magnitude.shape[0] == 1:
        for i in range(shape[1]):
            whole[:, i] *= magnitude.ravel()[i] / np.sqrt(np.sum(whole[:, i] ** 2))
    else:
        for i in range(shape[0]):
            whole[i] *= magnitude.ravel()[i] / np.sqrt(np.sum(whole[i] ** 2))
    return whole.reshape(shape[0], -1) - weight


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], most: float) -> None:
    assert found.keys() == wanted.keys()
    for path, update in wanted.items():
        error = np.linalg.norm(found[path] - update) / np.linalg.norm(update)
        assert error < most, (path, error)


@pytest.mark.parametrize("identical", ["copy", "project"])
@pytest.mark.parametrize("name", ["rows", "channels", "peft"])
def test_equal_weights_give_the_same_change(toy: Toy, tmp_path: Path, name: str, identical: str):
    file, out = getattr(toy, name), tmp_path / ("out" if name == "peft" else "out.safetensors")
    done = migrated(toy, file, toy.source, out, identical=identical, method="rotation")
    assert {module.flags[-1] for module in done.report.modules} == {DORA_KEPT}
    assert {module.algorithm for module in done.report.modules} == {"dora"}
    base = load_base_model(toy.source)
    assert_equal(effective(out, base), effective(file, base), 1e-6)
    assert verify_file(out).ok


@pytest.mark.proves("DoRA that is kept", "write", "peft writes, peft reads and merges")
def test_peft_reads_what_is_written_and_merges_to_the_same(toy: Toy, tmp_path: Path):
    out = tmp_path / "out"
    migrated(toy, toy.peft, toy.source, out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of keys that are missing or unexpected
        model = PeftModel.from_pretrained(builders.build_unet(TINY_XL), str(out))
    # peft merges in float32: half a unit in the last place of the weight, too.
    assert_equal(changed_by(model), toy.updates, 3e-6)


@pytest.mark.proves("DoRA that is kept", "write", "lycoris-lora writes, reads and computes")
def test_lycoris_reads_what_is_written(toy: Toy, tmp_path: Path):
    # Its loader makes every module one of rows; magnitudes of channels only its networks have.
    out = tmp_path / "out.safetensors"
    migrated(toy, toy.rows, toy.target, out)
    target = load_base_model(toy.target)
    unet = builders.build_unet(TINY_XL)
    with torch.no_grad():
        for key, parameter in unet.named_parameters():
            if key.endswith("weight") and f"unet.{key.removesuffix('.weight')}" in LAYERS:
                path = f"unet.{key.removesuffix('.weight')}"
                parameter.copy_(torch.from_numpy(target.weight(path).astype(np.float32)))
    plain, wanted = builders.build_unet(TINY_XL), effective(out, target)
    plain.load_state_dict(unet.state_dict())
    weights = {
        key.replace("lora_unet_", "lycoris_", 1): torch.from_numpy(array)
        for key, array in load_file(out).items()
    }
    network, _ = create_lycoris_from_weights(1.0, "", unet, weights)
    assert len(network.loras) == len(wanted)
    network.apply_to()
    assert_equal({path: by_forward(unet, plain, path) for path in wanted}, wanted, 3e-6)


@pytest.mark.parametrize("name", ["rows", "channels"])
@pytest.mark.parametrize("method", ["prolora", "copy"])
def test_on_other_weights_the_gains_are_kept(toy: Toy, tmp_path: Path, name: str, method: str):
    file, out = getattr(toy, name), tmp_path / "out.safetensors"
    migrated(toy, file, toy.target, out, method=method, rank="4")
    source, target = load_base_model(toy.source), load_base_model(toy.target)
    before, after = (
        {m.path: m for m in load_adapter(f, b.spec, structured=True).structured}
        for f, b in ((file, source), (out, target))
    )
    assert after
    for path, module in after.items():
        ratios = [gains(found, base) for found, base in ((before[path], source), (module, target))]
        np.testing.assert_allclose(*ratios, rtol=1e-6, err_msg=path)
    assert verify_file(out).ok


def gains(module: StructuredModule, base: BaseModel) -> np.ndarray:
    """The magnitude over the norms of weight and BA together."""
    shape, parts = base.spec.modules[module.path].shape, module.parts
    rank = parts["down"].shape[0]
    scale = 1.0 if module.alpha is None else module.alpha / rank
    up, down = (parts[part].astype(np.float64) for part in ("up", "down"))
    added = scale * up.reshape(shape[0], rank) @ down.reshape(rank, -1)
    whole = (base.matrix(module.path).astype(np.float64) + added).reshape(*shape[:2], -1)
    axes = (0, 2) if parts["magnitude"].shape[0] == 1 else (1, 2)
    return parts["magnitude"].ravel() / np.sqrt(np.sum(whole**2, axis=axes))


def problems_of(out: Path) -> str:
    checked = verify_file(out)
    assert not checked.ok
    return "; ".join([*checked.problems, *(p for m in checked.modules for p in m.problems)])


def test_a_magnitude_that_was_changed_is_found(toy: Toy, tmp_path: Path):
    out = tmp_path / "out.safetensors"
    migrated(toy, toy.rows, toy.target, out)
    tensors = load_file(out)
    key = next(key for key in tensors if key.endswith(".dora_scale"))
    header = load_adapter(out, structured=True).metadata
    wrong = tensors[key].copy()
    wrong[1] *= 1.001
    save_file(tensors | {key: wrong}, out, dict(header))
    assert "1 of 32 numbers of its magnitude are wrong" in problems_of(out)
    del tensors[key]
    save_file(tensors, out, dict(header))
    assert "lacks the magnitude of DoRA" in problems_of(out)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"dora-kept"', '"identical"', "the flag dora-kept of the report and the file's tensors"),
        ('"dora": "keep"', '"dora": "fold"', "is DoRA, and the report says --dora fold"),
    ],
)
def test_what_the_report_says_of_magnitudes_is_compared(
    toy: Toy, tmp_path: Path, old: str, new: str, problem: str
):
    out = tmp_path / "out.safetensors"
    report = migrated(toy, toy.rows, toy.target, out).report_file
    text = report.read_text()
    assert old in text
    report.write_text(text.replace(old, new, 1))
    assert problem in problems_of(out)


def test_without_its_input_a_file_of_dora_is_not_compared(toy: Toy, tmp_path: Path):
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    file.write_bytes(toy.rows.read_bytes())
    migrated(toy, file, toy.target, out)
    file.unlink()
    checked = verify_file(out)
    assert checked.verdict == "not-compared", checked.problems
    assert any("magnitudes of DoRA" in line for line in checked.not_checked)


def test_a_module_whose_ba_is_zero_moves_with_its_magnitude(toy: Toy, tmp_path: Path):
    tensors = load_file(toy.rows)
    zero = {k: np.zeros_like(a) if "lora_up" in k else a for k, a in tensors.items()}
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(zero, file)
    for identical in ("copy", "project"):
        how = {"identical": identical, "method": "prolora-full"}
        done = migrated(toy, file, toy.source, tmp_path / f"{identical}.safetensors", **how)
        assert len(done.report.modules) == len(LAYERS)
        base = load_base_model(toy.source)
        out = tmp_path / f"{identical}.safetensors"
        assert_equal(effective(out, base), effective(file, base), 1e-6)
        assert verify_file(out).ok


@pytest.mark.parametrize("method", ["copy", "prolora"])
def test_a_catalog_keeps_dora(toy: Toy, tmp_path: Path, method: str):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("rows", "channels"):
        (folder / f"{name}.safetensors").symlink_to(getattr(toy, name))
    pair = BasePair(load_base_model(toy.source), load_base_model(toy.target))
    given: dict[str, Any] = {"dora": "keep", "match": "name", "method": method}
    how = MigrationOptions(**given)
    found = run_catalog(CatalogJob((folder,), tmp_path / "out", how), pair)
    assert found.by_state == {"migrated": 2}, found.by_reason
    for name in ("rows", "channels"):
        out = tmp_path / "out" / f"{name}.safetensors"
        alone = tmp_path / f"{name}.safetensors"
        migrated(toy, getattr(toy, name), toy.target, alone, method=method)
        assert load_file(out).keys() == load_file(alone).keys()
        assert verify_file(out).ok


@pytest.mark.parametrize(
    ("name", "format", "wanted"),
    [
        ("rows", "flax", "a format with a place for them"),
        ("rows", "maxdiffusion", "a format with a place for them"),
        ("rows", "diffusers-old", "a format with a place for them"),
        ("channels", "peft", "magnitudes of rows there"),
        ("channels", "diffusers", "magnitudes of rows there"),
    ],
)
def test_formats_without_a_place_for_it(
    toy: Toy, tmp_path: Path, name: str, format: str, wanted: str
):
    out = tmp_path / ("out" if format == "peft" else "out.safetensors")
    text = f"DoRA: found magnitudes for format {format}; expected {wanted}; write .* --dora fold"
    with pytest.raises(AdapterRefused, match=text) as caught:
        migrated(toy, getattr(toy, name), toy.target, out, format)
    assert caught.value.code is Refusal.UNSUPPORTED_ALGORITHM
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "format"), [("rows", "flax"), ("channels", "peft"), ("channels", "diffusers")]
)
def test_a_scan_says_so_before_any_work(toy: Toy, tmp_path: Path, name: str, format: str):
    pair = BasePair(load_base_model(toy.source), load_base_model(toy.target))
    how = MigrationOptions(dora="keep", match="name")
    for place, verdict in (("same", "ok"), (format, "refused")):
        job = CatalogJob((getattr(toy, name),), tmp_path / "out", how, Writing(format=place))
        (record,) = scan_catalog(job, pair, headers_only=True)
        assert record.verdict == verdict, record.message
    assert record.reason == "unsupported-algorithm"


def test_a_network_of_peft_has_magnitudes_everywhere_or_nowhere(toy: Toy, tmp_path: Path):
    tensors = load_file(toy.rows)
    del tensors[next(key for key in tensors if key.endswith(".dora_scale"))]
    file = tmp_path / "in.safetensors"
    save_file(tensors, file)
    with pytest.raises(AdapterRefused, match="expected all modules of a network with one, or none"):
        migrated(toy, file, toy.target, tmp_path / "out", "peft")
    done = migrated(toy, file, toy.target, tmp_path / "out.safetensors")
    kept = {DORA_KEPT in module.flags for module in done.report.modules}
    assert kept == {True, False}
    assert verify_file(done.output).ok


@pytest.mark.proves("DoRA that is kept", "write", "diffusers' own loader takes all of it")
def test_diffusers_reads_rows(toy: Toy, tmp_path: Path):
    out = tmp_path / "out.safetensors"
    migrated(toy, toy.rows, toy.source, out, "diffusers")
    unet: Any = builders.build_unet(TINY_XL)
    state = {k.removeprefix("unet."): torch.from_numpy(a) for k, a in load_file(out).items()}
    unet.load_lora_adapter(state, prefix=None)
    unet.fuse_lora()
    before, base = weights_of(builders.build_unet(TINY_XL)), load_base_model(toy.source)
    fused = {
        path: unet.get_submodule(f"{path.removeprefix('unet.')}.base_layer") for path in LAYERS
    }
    changes = {
        path: layer.weight.detach().numpy().reshape(before[path].shape) - before[path]
        for path, layer in fused.items()
    }
    assert_equal(changes, effective(out, base), 3e-6)


def test_options_that_a_magnitude_does_not_have(toy: Toy, tmp_path: Path):
    with pytest.raises(BadOption, match="--scale 2.0: expected 1 with --dora keep.*--dora fold"):
        MigrationOptions(dora="keep", scale=2.0)
    how = MigrationOptions(dora="keep", match="name")
    out = tmp_path / "out.safetensors"
    with pytest.raises(
        UsageError, match="magnitude of DoRA.*plain factors.*merge with --dora fold"
    ):
        migrate_file([toy.rows, toy.channels], toy.source, toy.target, out, how, merge=True)


def test_a_magnitude_beyond_float32_is_refused(toy: Toy, tmp_path: Path):
    tensors = load_file(toy.rows)
    key = next(key for key in tensors if key.endswith(".dora_scale"))
    name = key.removesuffix(".dora_scale")
    huge = {key: np.full_like(tensors[key], 3e38)}
    huge |= {f"{name}.lora_up.weight": -3.0 * tensors[f"{name}.lora_up.weight"]}
    file, text = tmp_path / "in.safetensors", "magnitude of DoRA that float32 does not hold"
    save_file(tensors | huge, file)
    target = tmp_path / "target"
    loud = builders.build_unet(TINY_XL)
    with torch.no_grad():
        for parameter in loud.parameters():
            parameter.mul_(1000.0)
    loud.save_pretrained(target / "unet")
    with pytest.raises(AdapterRefused, match=f"{text}.*--dora fold"):
        migrated(toy, file, target, tmp_path / "out.safetensors", method="copy")


def test_the_command_line(toy: Toy, tmp_path: Path):
    out = tmp_path / "out.safetensors"
    words = ["migrate", toy.rows, "--source", toy.source, "--target", toy.target, "--out", out]
    assert run([*map(str, words), "--dora", "keep", "--quiet"]) == 0
    assert any(key.endswith(".dora_scale") for key in load_file(out))
