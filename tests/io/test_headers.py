"""Header strings of outputs: kept, rewritten for the target, recomputed, stripped."""

import hashlib
from dataclasses import replace
from typing import Any

import builders
import numpy as np
import pytest
from builders import random_module
from pairs import make_pair
from safetensors import safe_open

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.header_strings import for_target
from prolora_jax.adapters.formats.keys import FORMATS
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.migration.single import migrate
from prolora_jax.plans.options import MigrationOptions

XL = spec_from_config(builders.TINY_XL_TABLE, name="xl")
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.1.resnets.0.conv1"
HASHES = {"sshs_model_hash": "a", "sshs_legacy_hash": "b", "modelspec.hash_sha256": "c"}
FACTS = {"ss_tag_frequency": "{}", "modelspec.license": "MIT", "ss_steps": "10"}
BASE = {
    "ss_base_model_version": "sd_v1",
    "ss_v2": "False",
    "modelspec.architecture": "stable-diffusion-v1/lora",
}
FILE = {"ss_sd_model_name": "old.ckpt", "ss_sd_model_hash": "x", "ss_new_sd_model_hash": "y"}


def adapter_with(metadata: dict[str, str], *paths: str, **options: Any) -> Adapter:
    modules = tuple(random_module(path, XL, **options) for path in paths or (TO_Q,))
    return Adapter(modules, "kohya-ldm", metadata=metadata, origin="style.safetensors")


def header(path: Any) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


# --- hashes ---


def by_the_book(path: Any) -> dict[str, str]:
    """The hashes read off the file's bytes, as web interfaces do."""
    content = path.read_bytes()
    body = content[8 + int.from_bytes(content[:8], "little") :]
    digest = hashlib.sha256(body).hexdigest()
    return {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}


@pytest.mark.parametrize("format", [f for f in FORMATS if f not in {"flax", "peft"}])
def test_hashes_are_those_of_the_new_file(tmp_path, format):
    adapter = adapter_with(HASHES | FACTS, alpha=2.0)
    save_adapter(adapter, tmp_path / "out", format=format, base=XL)
    found = header(tmp_path / "out")
    assert by_the_book(tmp_path / "out").items() <= found.items()
    assert FACTS.items() <= found.items()
    # Shorter than 1 MiB: the legacy hash is that of nothing, as kohya's trainer writes it.
    assert found["sshs_legacy_hash"] == hashlib.sha256(b"").hexdigest()[:8]


def test_the_legacy_hash_looks_at_the_file_with_its_training_strings_only(tmp_path):
    large = {"bundle_emb.x.clip_l": np.arange(400_000, dtype=np.float32)}
    adapter = replace(adapter_with(HASHES | FACTS | {"other": "z" * 999}), extras=large)
    save_adapter(adapter, tmp_path / "out", base=XL)
    trained = replace(adapter, metadata={k: v for k, v in FACTS.items() if k.startswith("ss_")})
    save_adapter(trained, tmp_path / "trained", base=XL)
    window = (tmp_path / "trained").read_bytes()[0x100000:0x110000]
    want = hashlib.sha256(window).hexdigest()[:8]
    assert len(window) == 0x10000
    assert header(tmp_path / "out")["sshs_legacy_hash"] == want


def test_no_hash_where_there_was_none(tmp_path):
    save_adapter(adapter_with(FACTS), tmp_path / "out", base=XL)
    assert header(tmp_path / "out") == FACTS
    save_adapter(adapter_with({"sshs_model_hash": "a"}), tmp_path / "one", base=XL)
    assert set(header(tmp_path / "one")) == {"sshs_model_hash"}


def test_msgpack_has_no_hashes(tmp_path):
    save_adapter(adapter_with(HASHES | FACTS), tmp_path / "out", format="flax", base=XL)
    assert load_adapter(tmp_path / "out").metadata == FACTS


# --- the rest ---


def test_a_spent_configuration_is_left_out(tmp_path):
    adapter = adapter_with({"lora_adapter_metadata": '{"unet.lora_alpha": 8}'} | FACTS)
    save_adapter(adapter, tmp_path / "out", base=XL, metadata={"prolora": "{}"})
    assert header(tmp_path / "out") == FACTS | {"prolora": "{}"}
    save_adapter(adapter, tmp_path / "out", format="diffusers", base=XL, overwrite=True)
    assert header(tmp_path / "out") == FACTS | {"format": "pt"}


@pytest.mark.parametrize("format", FORMATS)
def test_strip_metadata(tmp_path, format):
    adapter = adapter_with(HASHES | FACTS | BASE | {"prolora": "{}"})
    path = tmp_path / "out"
    save_adapter(adapter, path, format=format, base=XL, strip_metadata=True)
    kept = load_adapter(path).metadata
    assert set(kept) - {"format", "lora_adapter_metadata"} == {"prolora", "modelspec.license"}


def test_rank_and_alpha_are_those_of_the_tensors(tmp_path):
    stale = {"ss_network_dim": "128", "ss_network_alpha": "64"}
    save_adapter(adapter_with(stale, TO_Q, CONV, rank=4, alpha=2.0), tmp_path / "out", base=XL)
    assert header(tmp_path / "out") == {"ss_network_dim": "4", "ss_network_alpha": "2.0"}
    modules = (random_module(TO_Q, XL, rank=2), random_module(CONV, XL, rank=4))
    several = replace(adapter_with(stale), modules=modules)
    save_adapter(several, tmp_path / "two", base=XL)
    assert header(tmp_path / "two") == dict.fromkeys(stale, "Dynamic")


ARCHITECTURES = [
    ("sdxl", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ("ssd-1b", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    ("bk-sdm-tiny", "sd_v1", "stable-diffusion-v1/lora"),
    ("sd21", None, None),  # which prediction it makes, no tensor tells
    (None, None, None),
]


@pytest.mark.parametrize(("architecture", "version", "modelspec"), ARCHITECTURES)
def test_what_says_the_base_model_is_rewritten_or_dropped(architecture, version, modelspec):
    spec = replace(XL, family=architecture)
    after = for_target(BASE | FILE | FACTS, spec, merged_from=["style"])
    want = FACTS | {"modelspec.merged_from": "style"}
    if version:
        want |= {"ss_base_model_version": version, "modelspec.architecture": modelspec}
        want |= {"ss_v2": "False"}
    assert after == want


def test_nothing_is_made_up():
    spec = replace(XL, family="sdxl")
    assert for_target({"ss_steps": "1"}, spec, merged_from=["style"]) == {"ss_steps": "1"}


def test_a_migrated_adapter_says_its_target(tmp_path):
    files = make_pair(tmp_path)
    source, target = load_base_model(files.source), load_base_model(files.target)
    adapter = load_adapter(files.adapter, source.spec)
    metadata = BASE | FILE | FACTS | {"modelspec.title": "My style"}
    adapter = replace(adapter, modules=adapter.modules[:2], metadata=metadata)
    migrated, _ = migrate(adapter, source, target, MigrationOptions(method="copy"))
    kept = dict(migrated.metadata)
    assert kept.pop("prolora").startswith("{")
    assert kept.pop("modelspec.merged_from") == "My style"
    # The target is no published model: nothing says its base.
    assert kept == FACTS | {"modelspec.title": "My style"}
