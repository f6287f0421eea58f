"""`prolora inspect` of a UNet or a diffusion transformer says what it is; tables by diffusers."""

import json
from pathlib import Path

import numpy as np
import pytest
from dit_tables import in_original_naming, table, tiny, weights
from safetensors.numpy import save_file

from prolora_jax.adapters.inspection import Network, inspect_base
from prolora_jax.architectures.identify import identified, published_spec
from prolora_jax.architectures.recognition import spec_from_shapes
from prolora_jax.cli.main import main

WIDTH = 32


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_either_naming_and_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flux = weights(tiny("flux"))
    original = in_original_naming(flux, "flux1_dev", WIDTH)
    (tmp_path / "pipeline" / "transformer").mkdir(parents=True)
    places = {
        "pipeline": tmp_path / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors",
        "original.safetensors": tmp_path / "original.safetensors",
    }
    save_file(flux, places["pipeline"])
    whole = {f"model.diffusion_model.{k}": np.ascontiguousarray(w) for k, w in original.items()}
    save_file(whole, places["original.safetensors"])
    given = [str(tmp_path / name) for name in places]
    assert run(["inspect", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["files"]
    assert [one["verdict"] for one in found] == ["base-model"] * 2
    assert [one["base_model"]["naming"] for one in found] == ["diffusers", "original"]
    for one in found:
        assert one["components"] == {"transformer": 50}
        assert one["base_model"]["stacks"] == [
            {"name": f"transformer.{stack}", "parts": 2, "widths": [WIDTH]}
            for stack in ("transformer_blocks", "single_transformer_blocks")
        ]
    assert run(["inspect", given[1]]) == 0
    printed = capsys.readouterr().out
    assert "a base model, not an adapter" in printed
    assert "architecture: of no published model" in printed
    assert "transformer.single_transformer_blocks: 2, width 32" in printed


PUBLISHED = {
    "flux1-dev": [
        ("transformer.transformer_blocks", 19, (3072,)),
        ("transformer.single_transformer_blocks", 38, (3072,)),
    ],
    "wan21-t2v-14b": [("transformer.blocks", 40, (5120,))],
    "flux2-klein-4b": [
        ("transformer.transformer_blocks", 5, (3072,)),
        ("transformer.single_transformer_blocks", 20, (3072,)),
    ],
    "sdxl": [
        ("unet.down_blocks", 3, (320, 640, 1280)),
        ("unet.mid_block", 1, (1280,)),
        ("unet.up_blocks", 3, (1280, 640, 320)),
    ],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_by_id_depth_and_width(name: str) -> None:
    found = inspect_base(published_spec(name), "a", "diffusers").base_model
    assert isinstance(found, Network)
    assert (found.architecture, found.differences) == (name, ())
    assert [(s.name, s.parts, s.widths) for s in found.stacks] == PUBLISHED[name]
    assert (found.lookalikes is None) == (name == "sdxl")


def test_what_differs_from_a_published_model_is_said() -> None:
    shapes = {f"{k}.weight": s for k, s in table("flux1_dev").items()}
    spec = spec_from_shapes(shapes | {"x_embedder.weight": (3072, 100)}, name="x")
    found = inspect_base(identified(spec), "a", "diffusers").base_model
    assert isinstance(found, Network)
    assert (found.architecture, found.family) == (None, "flux1-dev")
    assert found.differences == ("transformer.x_embedder takes 100 channels, not 64",)


def test_half_a_unet_is_no_base_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = {"conv_in.weight": (8, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}
    save_file(weights(half), tmp_path / "controlnet.safetensors")
    assert run(["inspect", str(tmp_path / "controlnet.safetensors")]) == 1
    assert "not-an-adapter" in capsys.readouterr().err
