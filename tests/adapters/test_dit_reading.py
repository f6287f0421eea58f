"""Adapters of diffusion transformers in every spelling that programs write: the same modules."""

import numpy as np
import pytest
from transformer_nets import (
    KINDS,
    Pair,
    Tensors,
    base,
    built,
    cut_by_map,
    dense,
    original_shapes,
    pairs,
    shapes,
    written_by_diffusers,
)

from prolora_jax.adapters.adapter import Adapter, delta
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve

FAMILIES = sorted(KINDS)
ALPHA = 2.0
"""Beside factors of rank 4: half of the update."""

# Prefix, whether names are flat, suffixes of both factors, whether an alpha stands beside them.
SPELLINGS = {
    "sd-scripts and musubi": ("lora_unet_", True, "kohya", True),
    "Wan-Fun": ("lora_unet__", True, "kohya", True),
    "OneTrainer, mixture": ("lora_transformer_", True, "kohya", True),
    "OneTrainer, original": ("", False, "peft", True),
    "SimpleTuner, LyCORIS": ("lycoris_", True, "kohya", True),
    "ai-toolkit": ("diffusion_model.", False, "peft", False),
    "diffusers": ("transformer.", False, "peft", False),
    "lightx2v": ("diffusion_model.", False, "kohya", True),
    "DiffSynth": ("", False, "peft.default", False),
    "fal": ("base_model.model.", False, "peft", False),
    "checkpoint": ("model.diffusion_model.", False, "peft", False),
    "Cosmos": ("net.", False, "peft", False),
    "trailing underscore": ("lora_unet_", True, "underscore", True),
}


def spelled(given: dict[str, Pair], spelling: str) -> Tensors:
    prefix, flat, suffix, has_alpha = SPELLINGS[spelling]
    ends = {
        "kohya": (".lora_down.weight", ".lora_up.weight"),
        "peft": (".lora_A.weight", ".lora_B.weight"),
        "peft.default": (".lora_A.default.weight", ".lora_B.default.weight"),
        "underscore": ("_.lora_down.weight", "_.lora_up.weight"),
    }[suffix]
    tensors: Tensors = {}
    for name, (down, up) in given.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {stem + ends[0]: down, stem + ends[1]: up}
        if has_alpha:
            tensors[f"{stem}{'_' * (suffix == 'underscore')}.alpha"] = np.array(ALPHA, np.float32)
    return tensors


def read(family: str, tensors: Tensors, metadata: dict[str, str] | None = None) -> Adapter:
    return resolve(parse(tensors, metadata or {}, "made.safetensors"), base(family))


def updates(adapter: Adapter) -> Tensors:
    return {m.path.removeprefix("transformer."): delta(adapter, m.path) for m in adapter.modules}


def assert_same(found: Tensors, wanted: Tensors, atol: float = 0.0) -> None:
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        np.testing.assert_allclose(found[name], update, rtol=1e-12, atol=atol, err_msg=name)


@pytest.mark.proves(
    ("Flux.1", "Flux.2", "HunyuanVideo", "LTX-Video", "Qwen-Image", "SD 3.5", "Wan", "Z-Image"),
    "read",
    "original names, rows by diffusers' converters of checkpoints",
)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_original_names_are_the_same_modules_in_every_spelling(
    family: str, spelling: str
) -> None:
    given = pairs(original_shapes(family))
    tensors = spelled(given, spelling)
    before = {key: array.copy() for key, array in tensors.items()}
    found = read(family, tensors)
    scale = ALPHA / 4 if SPELLINGS[spelling][3] else 1.0
    assert_same(updates(found), cut_by_map(family, dense(given, scale)))
    assert {m.rank for m in found.modules} == {4}
    again = resolve(found, base(family))
    assert again.modules == found.modules
    for key, array in before.items():
        np.testing.assert_array_equal(tensors[key], array)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_diffusers_names_are_the_same_modules_in_every_spelling(family: str, spelling: str) -> None:
    given = pairs(shapes(family))
    scale = ALPHA / 4 if SPELLINGS[spelling][3] else 1.0
    assert_same(updates(read(family, spelled(given, spelling))), dense(given, scale))


@pytest.mark.proves(
    ("Flux.1", "Flux.2", "HunyuanVideo", "LTX-Video", "Qwen-Image", "SD 3.5", "Wan", "Z-Image"),
    "read",
    "diffusers writes and fuses",
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_diffusers_writes_adds_what_diffusers_fuses(family: str) -> None:
    tensors, wanted = written_by_diffusers(family, built(family))
    assert_same(updates(read(family, tensors)), wanted, atol=2e-5)  # its own float32
