"""What a file says of its base model where that is a transformer; shapes are full ones."""

import json
from dataclasses import replace

import numpy as np
import pytest

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.detection import WrongBase, check_base, detect
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.published import published_base
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.adapters.inspection import inspect_adapter
from prolora_jax.adapters.transformer_evidence import other_checkpoint
from prolora_jax.architectures.dit.published import DITS
from prolora_jax.architectures.identify import published_spec
from prolora_jax.errors import AdapterRefused


def kohya(layers: dict[str, tuple[int, int]], metadata: dict[str, str] | None = None) -> Adapter:
    """Pairs of rank 1 under flat names."""
    tensors = {}
    for name, (out, width) in layers.items():
        stem = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = np.ones((1, width), "f2")
        tensors[f"{stem}.lora_up.weight"] = np.ones((out, 1), "f2")
    return parse(tensors, metadata or {}, "given.safetensors")


def flux_blocks(double: int, single: int) -> dict[str, tuple[int, int]]:
    h = 3072
    found = {}
    for i in range(double):
        for side in ("img", "txt"):
            found[f"double_blocks.{i}.{side}_attn.qkv"] = 3 * h, h
            found[f"double_blocks.{i}.{side}_mod.lin"] = 6 * h, h
    return found | {f"single_blocks.{i}.linear1": (7 * h, h) for i in range(single)}


def test_shapes_tell_the_architecture_and_leave_the_checkpoint_open() -> None:
    found = detect(kohya(flux_blocks(19, 38)))
    assert found.verdict == "ambiguous-base"
    assert set(found.architectures) == {
        *("flux1-dev", "flux1-schnell", "flux1-fill", "flux1-control")
    }
    assert any("FLUX.1 Krea dev, FLUX.1 Kontext dev" in line for line in found.evidence)


def test_a_file_with_all_blocks_of_the_shallow_model_and_no_more_is_the_shallow_model_s() -> None:
    found = detect(kohya(flux_blocks(8, 38)))
    assert found.architectures == ("flex1-alpha", "flex2-preview")
    assert found.evidence[-1].endswith("all of flex1-alpha and of flex2-preview and no more")
    spec = published_spec("flux1-dev")
    adapter = resolve(kohya(flux_blocks(8, 38)), spec)
    with pytest.raises(WrongBase, match="found an adapter for flex1-alpha or flex2-preview"):
        check_base(adapter, spec)
    assert check_base(adapter, spec, "flux1-dev") == ("assumed-base: flux1-dev",)


def test_families_whose_names_are_alike_are_told_by_their_widths() -> None:
    wide = {"layers.0.attention.qkv": (11520, 3840), "layers.29.attention.out": (3840, 3840)}
    assert detect(kohya(wide)).architectures == ("z-image",)
    narrow = {"layers.0.attention.qkv": (3840, 2304), "layers.25.attention.out": (2304, 2304)}
    assert detect(kohya(narrow)).architectures == ("lumina2",)


def test_an_adapter_of_another_checkpoint_is_said_with_its_reason() -> None:
    spec = replace(published_spec("flux1-dev"), name="FLUX.1-dev")
    said = {"transformer.base_model_name_or_path": "black-forest-labs/FLUX.1-Krea-dev"}
    for metadata in (
        {"lora_adapter_metadata": json.dumps(said)},
        {"ss_sd_model_name": "flux1-krea-dev.safetensors"},
    ):
        adapter = resolve(kohya(flux_blocks(19, 38), metadata), spec)
        flags = check_base(adapter, spec)
        (flag,) = (flag for flag in flags if flag.startswith("other-checkpoint"))
        assert "says FLUX.1 Krea dev, and base model FLUX.1-dev is FLUX.1 dev" in flag
        assert "equal shapes, other weights" in flag


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("FLUX.1-dev", {"ss_sd_model_name": "flux1-dev.safetensors"}),
        # What musubi-tuner writes: an architecture is a family's, whatever checkpoint it was.
        (
            "FLUX.1-Kontext-dev",
            {"modelspec.architecture": "Flux.1-dev/lora", "ss_base_model_version": "flux_kontext"},
        ),
        (
            "Wan2.2-T2V-A14B",
            {"modelspec.architecture": "wan2.1/lora", "ss_sd_model_name": "wan2.2_t2v_14B.pt"},
        ),
        # The file's name is surer than what the trainer calls its kind.
        (
            "FLUX.1-Krea-dev",
            {"ss_base_model_version": "flux1-dev", "ss_sd_model_name": "flux1-krea-dev.sft"},
        ),
    ],
)
def test_an_adapter_of_the_checkpoint_itself_has_no_flag(base: str, said: dict[str, str]) -> None:
    spec = replace(published_spec("flux1-dev"), name=base)
    adapter = resolve(kohya(flux_blocks(1, 1), said), spec)
    assert other_checkpoint(adapter.metadata, spec) == ()


def test_inspection_names_the_component_and_the_naming() -> None:
    found = inspect_adapter(kohya(flux_blocks(2, 2)), "given.safetensors")
    assert found.components == {"transformer": 10}
    assert found.format == "kohya-ldm"
    assert found.base is not None
    assert "flux1-dev" in found.base.architectures


def test_names_of_a_published_transformer_are_enough_to_convert() -> None:
    adapter = kohya(flux_blocks(1, 1))
    spec = published_base(adapter, "diffusers")
    assert spec.name == "flux1-dev"
    assert len(resolve(adapter, spec).modules) == 3 + 3 + 2 + 4
    with pytest.raises(AdapterRefused, match="fit no published base model"):
        published_base(kohya({"double_blocks.0.img_attn.qkv": (96, 32)}), "diffusers")


def test_every_published_transformer_has_one_name_for_one_layer() -> None:
    for architecture in DITS:
        spec = published_spec(architecture)
        names = spec.layer_names
        for path in spec.modules:
            flat = path.partition(".")[2].replace(".", "_")
            found = names.find(f"lora_unet_{flat}", "transformer")
            assert found is not None
            assert found.parts[0].path == path
            held = names.original(path)
            assert path in {part.path for part in held.parts}, (architecture, path)
            rows = [pair for part in held.parts for pair in part.segments or ((0, held.rows),)]
            covered = sorted(rows)
            assert covered[0][0] == 0
            assert covered[-1][1] == held.rows
            assert all(a[1] == b[0] for a, b in zip(covered, covered[1:], strict=False))
