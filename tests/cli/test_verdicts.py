"""`inspect --source` and `migrate` say the same of an adapter, whichever base model is the source.

The base models have real widths. Their files are holes: names and shapes decide, and no weight is
read for a plan that copies.
"""

import json
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import Shape, unet_table
from prolora_jax.cli.main import run
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.plans.plan import UNVERIFIED_TEXT_ENCODER

LCM = {"time_embedding.cond_proj.weight": (320, 256)}
NINE = {"conv_in.weight": (320, 9, 3, 3)}
KOLORS = {
    "encoder_hid_proj.weight": (2048, 4096),
    "add_embedding.linear_1.weight": (1280, 5632),
}
SOURCES: dict[str, dict[str, Shape]] = {
    "sdxl": unet_table(CONFIGS["sdxl"]),
    "lcm-sdxl": unet_table(CONFIGS["sdxl"]) | LCM,
    "inpainting": unet_table(CONFIGS["sdxl"]) | NINE,
    "kolors": unet_table(CONFIGS["sdxl"]) | KOLORS,
    "lcm-ssd-1b": unet_table(CONFIGS["ssd-1b"]) | LCM,
    "instructpix2pix": unet_table(CONFIGS["sd15"]) | {"conv_in.weight": (320, 8, 3, 3)},
}
# Which tensors an adapter trains, by its base.
ADAPTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sdxl": ("sdxl", ("attn2.to_k",)),
    "ssd-1b": ("lcm-ssd-1b", ("attn2.to_k",)),
    "sd15": ("instructpix2pix", ("attn2.to_k",)),
    "first": ("sdxl", ("attn2.to_k", "conv_in")),
    "wide": ("inpainting", ("attn2.to_k", "conv_in")),
    "some": ("sdxl", ("up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k",)),
    "time": ("lcm-sdxl", ("attn2.to_k", "cond_proj")),
    "encoder": ("sdxl", ()),
}
OK, WRONG, SHAPE = "ok", "wrong-base", "shape-mismatch"
EXPECTED = {
    "sdxl": {"ssd-1b": WRONG, "sd15": WRONG, "wide": SHAPE, "time": "unmatched-modules"},
    "lcm-sdxl": {"ssd-1b": WRONG, "sd15": WRONG, "wide": SHAPE},
    "inpainting": {
        **{"ssd-1b": WRONG, "sd15": WRONG, "first": SHAPE},
        "time": "unmatched-modules",
    },
    "kolors": {"ssd-1b": WRONG, "sd15": WRONG, "wide": SHAPE, "time": "unmatched-modules"},
    "lcm-ssd-1b": dict.fromkeys(("sdxl", "sd15", "first", "wide", "time"), WRONG),
    "instructpix2pix": {
        **dict.fromkeys(("sdxl", "ssd-1b", "first", "wide", "time", "some"), WRONG),
    },
}


def write_hollow(path: Path, shapes: dict[str, Shape]) -> None:
    """A safetensors file of these tensors that takes no room: all zeros are a hole."""
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verdicts")
    for name, shapes in SOURCES.items():
        write_hollow(folder / name / "unet" / "diffusion_pytorch_model.safetensors", shapes)
    for name, (base, trained) in ADAPTERS.items():
        tensors = {}
        for key, shape in SOURCES[base].items():
            path = key.removesuffix(".weight")
            if path != key and path.endswith(trained):
                window = (1 for _ in shape[2:])
                tensors[f"unet.{path}.lora_A.weight"] = np.ones((1, *shape[1:]), np.float16)
                tensors[f"unet.{path}.lora_B.weight"] = np.ones((shape[0], 1, *window), np.float16)
        if not trained:
            path = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
            tensors[f"{path}.lora_A.weight"] = np.ones((1, 768), np.float16)
            tensors[f"{path}.lora_B.weight"] = np.ones((768, 1), np.float16)
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def opened() -> Callable[[Path], BaseModel]:
    """Base models that are described once: each is a source 10 times here."""
    return cache(load_base_model)


@pytest.fixture(autouse=True)
def surroundings(opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("prolora_jax.io.base_models.checkpoint.load_base_model", opened)


@pytest.mark.parametrize(
    ("source", "assumed"),
    [*((name, None) for name in SOURCES), ("inpainting", "sdxl"), ("lcm-ssd-1b", "sdxl")],
)
def test_inspect_and_migrate_agree(
    folder: Path, capsys: pytest.CaptureFixture[str], source: str, assumed: str | None
):
    files = [str(folder / f"{name}.safetensors") for name in ADAPTERS]
    base = ["--source", str(folder / source)]
    base += [] if assumed is None else ["--assume-base", assumed]
    run(["inspect", *files, *base, "--json"])
    said = json.loads(capsys.readouterr().out)["files"]
    for name, file, inspected in zip(ADAPTERS, files, said, strict=True):
        if assumed is None:
            verdict = OK if inspected["reason"] is None else inspected["reason"]
            assert verdict == EXPECTED[source].get(name, OK), name
        target = ["--target", str(folder / source), "--dry-run", "--method", "copy"]
        code = run(["migrate", file, *base, *target, "-q"])
        error = capsys.readouterr().err
        assert (code == 0) == (inspected["verdict"] == "ok"), (name, error)
        if code:
            assert error == f"error: {inspected['message']}\n"


@pytest.mark.parametrize(
    ("source", "flags", "reasons"),
    [
        ("lcm-sdxl", [UNVERIFIED_TEXT_ENCODER], []),
        ("inpainting", [UNVERIFIED_TEXT_ENCODER], []),
        ("kolors", [], ["text-encoder-absent"]),  # its text encoder is ChatGLM
    ],
)
def test_text_encoders_pass_through_where_they_are_the_familys(
    folder: Path, capsys: pytest.CaptureFixture[str], source: str, flags: list, reasons: list
):
    file, base = str(folder / "encoder.safetensors"), str(folder / source)
    assert run(["migrate", file, "--source", base, "--target", base, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [flag for step in plan["steps"] for flag in step["flags"]] == flags
    assert [skipped["reason"] for skipped in plan["skipped"]] == reasons


def test_they_agree_on_the_names_of_a_flax_tree(
    folder: Path, opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "ssd-1b.msgpack"
    base = opened(folder / "lcm-ssd-1b").spec
    adapter = load_adapter(folder / "ssd-1b.safetensors", base)
    save_adapter(adapter, file, format="flax", base=base)
    source = ["--source", str(folder / "lcm-sdxl")]
    assert run(["inspect", str(file), *source]) == 1
    error = capsys.readouterr().err
    assert "an adapter for ssd-1b " in error
    assert run(["migrate", str(file), *source, "--target", source[1], "--dry-run", "-q"]) == 1
    assert capsys.readouterr().err == error


def test_assume_base_is_about_the_source(folder: Path, capsys: pytest.CaptureFixture[str]):
    file = str(folder / "ssd-1b.safetensors")
    assert run(["inspect", file, "--assume-base", "sdxl"]) == 2
    assert "--assume-base needs --source BASE" in capsys.readouterr().err
    base = ["--source", str(folder / "sdxl")]
    assert run(["inspect", file, *base, "--assume-base", "sdxxl"]) == 2
    assert "--assume-base sdxxl: expected sd15 " in capsys.readouterr().err
