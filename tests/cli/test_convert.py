"""`prolora convert`: formats on the command line, with and without a base model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from builders import random_module
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.adapters.formats.keys import FORMATS
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.published import published_base
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.cli.main import run
from prolora_jax.errors import AdapterRefused, UsageError
from prolora_jax.io.adapters.files import load_adapter, save_adapter

XL = spec_from_config(builders.TINY_XL_TABLE, name="xl")
SPECS = {name: spec_from_config(CONFIGS[name], name=name) for name in CONFIGS}
TO_Q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.1.resnets.0.conv1"
TO_K = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
DEEP = "unet.mid_block.attentions.0.transformer_blocks.9.attn2.to_k"


def adapter_of(spec: BaseModelSpec, *paths: str, **options: Any) -> Adapter:
    options = {"rank": 2, "alpha": 3.0} | options
    modules = (random_module(path, spec, seed=i, **options) for i, path in enumerate(paths))
    return Adapter(tuple(modules), "diffusers", origin="a.safetensors")


def flat_file(spec: BaseModelSpec, *paths: str, format: str = "kohya-ldm") -> Adapter:
    """As parsed from a kohya file: its names are flat."""
    tensors, metadata = dump(adapter_of(spec, *paths), format, spec)
    return parse(tensors, metadata, "a.safetensors")


# --- which base model's names ---


def test_names_of_the_largest_model_need_no_base():
    assert published_base(flat_file(SPECS["sdxl"], TO_Q, DEEP), "diffusers").name == "sdxl"


@pytest.mark.parametrize("to", ["same", "kohya", "diffusers", "peft"])
def test_several_models_with_the_same_names_are_no_obstacle(to):
    # All modules of an SSD-1B adapter are in SDXL, too, under the same names.
    adapter = flat_file(SPECS["ssd-1b"], TO_K, CONV)
    assert published_base(adapter, to).name == "sdxl"


def test_models_that_name_a_block_differently_need_a_base():
    # input_blocks.4.1 of SD 1.5 is input_blocks.3.1 of BK-SDM.
    adapter = adapter_of(SPECS["sd15"], TO_K)
    assert published_base(adapter, "kohya").name == "sd15"  # diffusers' blocks: no difference
    message = (
        "a.safetensors: found modules that fit sd15, .*bk-sdm-base.*, whose keys differ in format "
        "kohya-ldm; expected one; name the base model that it is for with --base"
    )
    with pytest.raises(UsageError, match=message):
        published_base(adapter, "kohya-ldm")


def test_text_encoders_alone_do_not_say_which_kohya_prefix():
    module = random_module(TO_Q, XL)
    path = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    adapter = Adapter((LoraModule(path, module.down, module.up),), "diffusers", origin="a")
    assert published_base(adapter, "diffusers")
    with pytest.raises(UsageError, match="whose keys differ in format kohya; .*--base"):
        published_base(adapter, "kohya")


def test_names_of_no_published_model():
    adapter = adapter_of(XL, TO_Q)
    message = (
        f"a.safetensors: found modules, such as {TO_Q}, whose names and shapes fit no published "
        "base model; expected one of sd15, .*; name the base model that it is for with --base"
    )
    with pytest.raises(AdapterRefused, match=message):
        published_base(adapter, "kohya")


# --- the command ---


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A tiny base model and an adapter for it, in diffusers' keys."""
    base = builders.save_folder(builders.build_unet(builders.TINY_XL), tmp_path / "base")
    file = tmp_path / "in.safetensors"
    save_adapter(adapter_of(XL, TO_Q, CONV), file, base=XL, format="kohya-ldm")
    return {"base": base, "in": file, "out": tmp_path / "out"}


def convert(files: dict[str, Path], to: str, *more: str) -> int:
    return run(
        ["convert", str(files["in"]), "--to", to, "--out", str(files["out"])]
        + ["--base", str(files["base"]), *more]
    )


@pytest.mark.parametrize("to", [*FORMATS, "kohya", "same"])
def test_every_format(files, to, capsys):
    assert convert(files, to, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["from"] == "kohya-ldm"
    assert facts["to"] == (to if to in FORMATS else "kohya-ldm")
    before, after = load_adapter(files["in"], XL), load_adapter(files["out"], XL)
    builders.assert_deltas(after, {m.path: builders.delta(m) for m in before.modules})
    if not to.startswith("diffusers"):  # its keys have no field for the scale
        for module in before.modules:
            assert after.module(module.path).scale == module.scale
            assert_array_equal(after.module(module.path).down, module.down)
            assert_array_equal(after.module(module.path).up, module.up)


def test_without_a_base(tmp_path, capsys):
    spec = SPECS["sdxl"]
    save_adapter(adapter_of(spec, TO_Q, DEEP), tmp_path / "in", base=spec, format="diffusers")
    command = ["convert", str(tmp_path / "in"), "--to", "kohya", "--out", str(tmp_path / "out")]
    assert run(command) == 0
    assert "2 modules, diffusers -> kohya-ldm, names of sdxl" in capsys.readouterr().out
    assert "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_k.lora_up.weight" in load_file(
        tmp_path / "out"
    )
    assert run(command) == 2
    assert "output exists" in capsys.readouterr().err


def test_no_device_is_started(files):
    arguments = ["convert", str(files["in"]), "--to", "diffusers", "--out", str(files["out"])]
    code = (
        "import sys\nfrom prolora_jax.cli.main import run\n"
        f"assert run({[*arguments, '--base', str(files['base'])]!r}) == 0\n"
        "assert not {'jax', 'jaxlib', 'flax', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("choice", "scale"), [("rank", 1.0), ("zero", 0.0)])
def test_alpha_zero(files, choice, scale, capsys):
    tensors = load_file(files["in"])
    for key in tensors:
        if key.endswith(".alpha"):
            tensors[key] = np.zeros((), np.float32)
    save_file(tensors, files["in"])
    assert convert(files, "diffusers") == 1
    assert "found alpha 0" in capsys.readouterr().err
    assert run(["inspect", str(files["in"])]) == 1
    assert run(["inspect", str(files["in"]), "--alpha-zero", choice]) == 0
    assert convert(files, "kohya", "--alpha-zero", choice) == 0
    after = load_adapter(files["out"], XL)
    for module in adapter_of(XL, TO_Q, CONV, alpha=None).modules:
        want = scale * builders.delta(module)
        np.testing.assert_allclose(builders.delta(after.module(module.path)), want, rtol=1e-6)
        assert after.module(module.path).alpha != 0  # no reader can take it for the other thing
