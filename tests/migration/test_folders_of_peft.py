"""Folders of peft's LoHa and LoKr: of their kind where all is copied, else plain LoRA, flagged."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any, NamedTuple

import builders
import numpy as np
import pytest
import torch
from builders import TINY_XL
from other_algorithms import LAYERS
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file

from prolora_jax.catalog.catalog import run_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.errors import AdapterRefused
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.report import OWN_TENSORS
from prolora_jax.verification.file import verify_file

NAMES = [path.removeprefix("unet.") for path in LAYERS]
CONFIGS: dict[str, Any] = {
    "loha": LoHaConfig(r=2, alpha=5, target_modules=NAMES),
    "lokr": LoKrConfig(r=2, alpha=5, target_modules=NAMES, decompose_factor=4),
    "loha-patterns": LoHaConfig(
        r=2,
        alpha=5,
        target_modules=NAMES,
        rank_pattern={"to_q": 3},
        alpha_pattern={"to_q": 7},
        use_effective_conv2d=True,
    ),
    # Full halves at a rank that no tensor says: to peft the scale is 5 / 24.
    "lokr-full": LoKrConfig(r=24, alpha=5, target_modules=NAMES, decompose_factor=4),
    "lokr-both": LoKrConfig(
        r=1,
        alpha=5,
        target_modules=NAMES,
        rank_pattern={"to_q": 2},
        decompose_both=True,
        use_effective_conv2d=True,
    ),
    "lora": LoraConfig(r=2, lora_alpha=5, target_modules=NAMES),
}


class Toy(NamedTuple):
    """A base model, and a folder of peft for each algorithm."""

    base: Path
    folders: Path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("made_plain")
    builders.build_unet(TINY_XL).save_pretrained(folder / "base" / "unet")
    generator = torch.Generator().manual_seed(3)
    for name, config in CONFIGS.items():
        model: Any = get_peft_model(builders.build_unet(TINY_XL), config)
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(str(folder / name))
    return Toy(folder / "base", folder)


def merged(folder: Path) -> dict[str, np.ndarray]:
    """What peft adds to each layer's weight, of a folder that it loads."""
    plain: Any = builders.build_unet(TINY_XL).double()
    model: Any = PeftModel.from_pretrained(builders.build_unet(TINY_XL), str(folder)).double()
    unet = model.merge_and_unload()
    weights = {p: (unet.get_submodule(p).weight, plain.get_submodule(p).weight) for p in NAMES}
    return {path: (a - b).detach().numpy() for path, (a, b) in weights.items()}


OTHERS = [name for name in CONFIGS if name != "lora"]


@pytest.mark.proves("LoHa, LoKr of peft, as folders", "migrate", "peft's merge")
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_copied_stays_of_its_kind(toy: Toy, tmp_path: Path, name: str):
    how = MigrationOptions(method="copy")
    done = migrate_file(toy.folders / name, toy.base, toy.base, tmp_path / "out", how)
    assert done.report.flags == ()
    assert all(OWN_TENSORS in m.flags for m in done.report.modules)
    given, made = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (toy.folders / name, tmp_path / "out")
    )
    assert given.keys() == made.keys()
    assert all(np.array_equal(made[key], array) for key, array in given.items())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == name[:4].upper()
    found, want = merged(tmp_path / "out"), merged(toy.folders / name)
    for path in NAMES:
        error = np.linalg.norm(found[path] - want[path])
        assert error < 1e-6 * np.linalg.norm(want[path]), path
    checked = verify_file(tmp_path / "out")
    assert checked.ok, [checked.problems, *((m.path, m.problems) for m in checked.modules)]


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_projected_becomes_plain_lora_of_the_same_update(
    toy: Toy, tmp_path: Path, name: str
):
    how = MigrationOptions(method="prolora-full", factor_rank="exact")
    done = migrate_file(toy.folders / name, toy.base, toy.base, tmp_path / "out", how)
    assert done.report.flags == (f"made-plain-lora: {name[:4]}",)
    assert {m.algorithm for m in done.report.modules} == {name[:4]}
    assert not any(OWN_TENSORS in m.flags for m in done.report.modules)
    found, want = merged(tmp_path / "out"), merged(toy.folders / name)
    for path in NAMES:
        error = np.linalg.norm(found[path] - want[path])
        assert error < 1e-5 * np.linalg.norm(want[path]), path
    checked = verify_file(tmp_path / "out")
    assert checked.ok, [checked.problems, *((m.path, m.problems) for m in checked.modules)]


def test_verify_wants_the_flag(toy: Toy, tmp_path: Path):
    how = MigrationOptions(method="prolora-full")
    done = migrate_file(toy.folders / "loha", toy.base, toy.base, tmp_path / "out", how)
    text = done.report_file.read_text()
    assert text.count('"made-plain-lora: loha"') == 1
    done.report_file.write_text(text.replace('"made-plain-lora: loha"', ""))
    checked = verify_file(tmp_path / "out")
    assert not checked.ok
    assert "recomputed ['made-plain-lora: loha']" in "; ".join(checked.problems)


def test_verify_sees_another_rank_in_the_configuration(toy: Toy, tmp_path: Path):
    how = MigrationOptions(method="copy")
    migrate_file(toy.folders / "lokr-full", toy.base, toy.base, tmp_path / "out", how)
    config = tmp_path / "out" / "adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"r": 2 * fields["r"]}))
    checked = verify_file(tmp_path / "out")
    assert not checked.ok
    assert any("its tensors of lokr are not the input's" in p for p in checked.problems)


@pytest.mark.parametrize("rank", [0, None, "8", True])
def test_a_rank_that_is_none_is_refused(toy: Toy, tmp_path: Path, rank: object):
    copytree(toy.folders / "lokr-full", tmp_path / "in")
    config = tmp_path / "in" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": rank, "rank_pattern": {}}))
    with pytest.raises(AdapterRefused, match=rf"found r {rank!r} of unet.*expected the LoraConfig"):
        migrate_file(tmp_path / "in", toy.base, toy.base, tmp_path / "out")


def test_one_file_is_plain_lora(toy: Toy, tmp_path: Path):
    how = MigrationOptions(method="copy")
    out = tmp_path / "out.safetensors"
    done = migrate_file(toy.folders / "loha", toy.base, toy.base, out, how)
    assert done.report.flags == ("made-plain-lora: loha",)
    assert verify_file(out).ok


def test_what_is_plain_lora_already_has_no_flag(toy: Toy, tmp_path: Path):
    how = MigrationOptions(method="copy")
    done = migrate_file(toy.folders / "lora", toy.base, toy.base, tmp_path / "out", how)
    assert done.report.flags == ()


def test_a_folder_written_under_names_of_kohya_is_plain_lora_too(toy: Toy, tmp_path: Path):
    out = tmp_path / "out.safetensors"
    how, writing = MigrationOptions(method="copy"), Writing(format="kohya")
    done = migrate_file(toy.folders / "lokr", toy.base, toy.base, out, how, writing)
    assert done.report.flags == ("made-plain-lora: lokr",)
    assert verify_file(out).ok


def test_a_catalog_keeps_the_kind(toy: Toy, tmp_path: Path):
    (tmp_path / "in").mkdir()
    copytree(toy.folders / "loha", tmp_path / "in" / "loha")
    copytree(toy.folders / "lora", tmp_path / "in" / "lora")
    pair = BasePair(load_base_model(toy.base), load_base_model(toy.base))
    how = MigrationOptions(method="copy")
    done = run_catalog(CatalogJob((tmp_path / "in",), tmp_path / "out", how), pair)
    assert done.by_state == {"migrated": 2}, done.by_reason
    assert (tmp_path / "out" / "loha" / "adapter_model.safetensors").exists()
    for name in ("loha", "lora"):
        (said,) = [p for p in (tmp_path / "out").glob(f"{name}*.report.json")]
        assert json.loads(said.read_text())["flags"] == []
        kind = json.loads((tmp_path / "out" / name / "adapter_config.json").read_text())
        assert kind["peft_type"] == name.upper()
        assert verify_file(tmp_path / "out" / name).ok
