"""`--format same`: LoHa and LoKr modules that are copied stay so, beside factors that moved."""

from pathlib import Path
from typing import Any, NamedTuple

import builders
import numpy as np
import pytest
import torch
from builders import TINY_XL
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
from lycoris.wrapper import create_lycoris_from_weights
from other_algorithms import LAYERS, by_forward, by_lycoris
from safetensors.numpy import load_file, save_file

from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.catalog.catalog import run_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.report import OWN_TENSORS
from prolora_jax.verification.file import verify_file

CHANGED = LAYERS[::2]
"""Layers that differ between source and target."""

CASES: dict[str, dict[str, Any]] = {
    "loha": {},
    "loha-tucker": {"use_tucker": True},
    "lokr": {"factor": 4},
    "lokr-full": {"linear_dim": 10000, "conv_dim": 10000},
}


class Toy(NamedTuple):
    """Two base models, half of whose layers are equal, and a folder of files for the first."""

    source: Path
    target: Path
    files: Path
    updates: dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("own")
    unet: Any = builders.build_unet(TINY_XL)
    unet.save_pretrained(folder / "source" / "unet")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for path in CHANGED:
            weight = unet.get_submodule(path.removeprefix("unet.")).weight
            weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=generator))
    unet.save_pretrained(folder / "target" / "unet")
    (folder / "files").mkdir()
    updates = {}
    for name, options in CASES.items():
        made = by_lycoris(name.partition("-")[0], **options)
        header = {"ss_network_module": "lycoris.kohya", "ss_network_dim": "3"}
        save_file(made.tensors, folder / "files" / f"{name}.safetensors", header)
        updates[name] = made.updates
    return Toy(folder / "source", folder / "target", folder / "files", updates)


def migrated(toy: Toy, name: str, out: Path, format: str = "same", **options: Any):
    given: dict[str, Any] = {"match": "name"} | options
    file = toy.files / f"{name}.safetensors"
    how = MigrationOptions(**given)
    return migrate_file(file, toy.source, toy.target, out, how, Writing(format=format))


def problems_of(out: Path) -> str:
    checked = verify_file(out)
    assert not checked.ok
    return "; ".join([*checked.problems, *(p for m in checked.modules for p in m.problems)])


@pytest.mark.proves(
    "LoHa and LoKr that are copied, beside LoRA", "write", "lycoris-lora writes, reads and computes"
)
@pytest.mark.parametrize("name", CASES)
def test_what_is_copied_stays_and_what_moves_becomes_lora(toy: Toy, tmp_path: Path, name: str):
    out = tmp_path / "out.safetensors"
    report = migrated(toy, name, out).report
    kept = {module.path for module in report.modules if OWN_TENSORS in module.flags}
    assert kept == set(LAYERS) - set(CHANGED)
    assert {module.path for module in report.modules} == set(LAYERS)
    before, after = load_file(toy.files / f"{name}.safetensors"), load_file(out)
    for key, tensor in before.items():
        layer = key.partition(".")[0]
        if any(layer.endswith(path.removeprefix("unet.").replace(".", "_")) for path in kept):
            np.testing.assert_array_equal(after[key], tensor)
    assert load_adapter(out, structured=True).metadata["ss_network_module"] == "lycoris.kohya"
    assert load_adapter(out, structured=True).metadata["ss_network_dim"] == "Dynamic"
    checked = verify_file(out)
    assert checked.ok, [checked.problems, *((m.path, m.problems) for m in checked.modules)]
    # LyCORIS takes each module for what it is.
    unet, plain = (builders.build_unet(TINY_XL) for _ in range(2))
    weights = {
        key.replace("lora_unet_", "lycoris_", 1): torch.from_numpy(array)
        for key, array in after.items()
    }
    network, _ = create_lycoris_from_weights(1.0, "", unet, weights)
    assert len(network.loras) == len(LAYERS)
    network.apply_to()
    moved = {m.path: m for m in load_adapter(out, structured=True).modules}
    assert len(moved) == len(CHANGED)
    for path in LAYERS:
        found = by_forward(unet, plain, path)
        if path in kept:
            want = toy.updates[name][path]
            assert np.linalg.norm(found - want) < 1e-6 * np.linalg.norm(want), path
        else:
            (record,) = [module for module in report.modules if module.path == path]
            assert np.linalg.norm(found) == pytest.approx(record.norm_out, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"format": "lora"}, {"format": "kohya"}, {"rank": "2"}, {"scale": 0.5}, {"dtype": "bfloat16"}]
    + [{"uniform_rank": True}],
    ids=str,
)
def test_what_asks_for_other_numbers_asks_for_lora(toy: Toy, tmp_path: Path, options: dict):
    out = tmp_path / "out.safetensors"
    report = migrated(toy, "loha", out, **options).report
    assert not any(OWN_TENSORS in module.flags for module in report.modules)
    assert all(".lora_" in key or key.endswith(".alpha") for key in load_file(out))
    assert load_adapter(out).metadata["ss_network_module"] == "networks.lora"
    assert verify_file(out).ok


def test_a_file_all_of_which_is_copied_is_the_input_again(toy: Toy, tmp_path: Path):
    out = tmp_path / "out.safetensors"
    migrated(toy, "lokr", out, method="copy")
    before, after = load_file(toy.files / "lokr.safetensors"), load_file(out)
    assert before.keys() == after.keys()
    assert all(np.array_equal(after[key], array) for key, array in before.items())
    assert verify_file(out).ok


def test_a_loha_of_any_rank_is_copied_without_factors(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = by_lycoris("loha", linear_dim=9, conv_dim=9)
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(made.tensors, file)
    how = MigrationOptions(match="name", method="copy")

    def none(*_: object, **__: object) -> None:
        raise AssertionError("a decomposition")

    with monkeypatch.context() as patched:
        for name in ("svd", "qr", "eigh"):
            patched.setattr(np.linalg, name, none)
        report = migrate_file(file, toy.source, toy.target, out, how).report
    before, after = load_file(file), load_file(out)
    assert before.keys() == after.keys()
    assert all(np.array_equal(after[key], array) for key, array in before.items())
    for module in report.modules:
        want = np.linalg.norm(made.updates[module.path])
        assert (module.rank_in, module.kept) == (81, 1.0)
        assert module.norm_out == pytest.approx(want, rel=1e-5)
    checked = verify_file(out)
    assert checked.ok, [checked.problems, *((m.path, m.problems) for m in checked.modules)]
    wrong = {key: array * 2 if "hada_w1_a" in key else array for key, array in after.items()}
    save_file(wrong, out, dict(load_adapter(out, structured=True).metadata))
    assert "its tensors of loha are not the input's" in problems_of(out)
    # As LoRA its rank is cut, as before.
    again = migrate_file(file, toy.source, toy.target, out, how, Writing("lora", overwrite=True))
    assert max(module.rank_in for module in again.report.modules) <= 64
    assert verify_file(out).ok


def test_tensors_that_were_changed_are_found(toy: Toy, tmp_path: Path):
    out = tmp_path / "out.safetensors"
    report = migrated(toy, "loha", out).report_file
    tensors, header = load_file(out), dict(load_adapter(out, structured=True).metadata)
    key = next(key for key in tensors if key.endswith(".hada_w1_a"))
    wrong = tensors[key].copy()
    wrong[0, 0] *= 1.000001
    save_file(tensors | {key: wrong}, out, header)
    assert "its tensors of loha are not the input's" in problems_of(out)
    save_file(tensors, out, header)
    assert verify_file(out).ok
    text = report.read_text()
    report.write_text(text.replace(f'"{OWN_TENSORS}"', '"identical"', 1))
    assert f"the flag {OWN_TENSORS} of the report and the file's tensors" in problems_of(out)


def test_without_its_input(toy: Toy, tmp_path: Path):
    out, file = tmp_path / "out.safetensors", tmp_path / "in.safetensors"
    file.write_bytes((toy.files / "lokr.safetensors").read_bytes())
    how = MigrationOptions(match="name")
    migrate_file(file, toy.source, toy.target, out, how)
    file.unlink()
    checked = verify_file(out)
    assert checked.verdict == "not-compared", (checked.problems, checked.modules)


def test_a_catalog_keeps_them_too(toy: Toy, tmp_path: Path):
    pair = BasePair(load_base_model(toy.source), load_base_model(toy.target))
    how = MigrationOptions(match="name")
    found = run_catalog(CatalogJob((toy.files,), tmp_path / "out", how), pair)
    assert found.by_state == {"migrated": len(CASES)}, found.by_reason
    for name in CASES:
        out, alone = tmp_path / "out" / f"{name}.safetensors", tmp_path / f"{name}.safetensors"
        migrated(toy, name, alone)
        assert load_file(out).keys() == load_file(alone).keys()
        assert verify_file(out).ok


def test_formats_that_have_no_keys_for_them(toy: Toy):
    base = load_base_model(toy.source).spec
    adapter = load_adapter(toy.files / "loha.safetensors", base, structured=True)
    text = "unsupported-algorithm:LoHa: found its own tensors for format diffusers; .*--to lora"
    with pytest.raises(AdapterRefused, match=text) as caught:
        dump(adapter, "diffusers", base)
    assert caught.value.code is Refusal.UNSUPPORTED_ALGORITHM


def test_diffusers_refuses_such_a_file(toy: Toy, tmp_path: Path):
    """Which is why docs/formats.md names `--format lora` for it."""
    out = tmp_path / "out.safetensors"
    migrated(toy, "loha", out)
    state = {key: torch.from_numpy(array) for key, array in load_file(out).items()}
    unet: Any = builders.build_unet(TINY_XL)
    with pytest.raises(ValueError, match="keys have not been correctly renamed"):
        StableDiffusionXLLoraLoaderMixin.lora_state_dict(state, unet_config=unet.config)
