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
from prolora_jax.adapters.formats.published import BOTH_SPELLINGS, published_base, told_apart
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.cli.main import run
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
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


# --- a module in two spellings, of which only a base model knows that they are one's ---


def both_spellings(spec: BaseModelSpec, ldm: str, diffusers: str, seed: int = 0) -> Adapter:
    """A file with one module under its LDM name, and one under its diffusers name."""
    tensors = dump(adapter_of(spec, ldm), "kohya-ldm", spec)[0]
    second = Adapter((random_module(diffusers, spec, seed=seed, rank=2, alpha=3.0),), "diffusers")
    tensors |= dump(second, "kohya-diffusers", spec)[0]
    return parse(tensors, {}, "a.safetensors")


@pytest.mark.parametrize("name", ["sdxl", "sd15"])
def test_a_module_under_an_ldm_name_and_a_diffusers_name_is_refused(name):
    path = DEEP if name == "sdxl" else "unet.mid_block.attentions.0.proj_in"
    message = f"{path}: found twice with different numbers, once as lora_unet_"
    for use in (told_apart, lambda adapter: published_base(adapter, "diffusers")):
        with pytest.raises(AdapterRefused, match=message) as caught:
            use(both_spellings(SPECS[name], path, path, seed=1))
        assert caught.value.code is Refusal.DUPLICATE_MODULE
    twice_the_same = told_apart(both_spellings(SPECS[name], path, path))
    assert twice_the_same.flags == told_apart(both_spellings(SPECS[name], path, TO_K)).flags == ()
    assert published_base(twice_the_same, "diffusers").name == name


def test_names_that_published_models_read_in_two_ways_are_flagged():
    # output_blocks.3.1 is the first attention of its block in SD 1.5, the second one in BK-SDM.
    path = "unet.up_blocks.1.attentions.0.proj_in"
    adapter = both_spellings(SPECS["sd15"], path, path, seed=1)
    assert told_apart(adapter).flags == (BOTH_SPELLINGS,)
    unknown = told_apart(both_spellings(XL, TO_Q, TO_Q, seed=1))
    assert unknown.flags == (BOTH_SPELLINGS,)
    assert told_apart(adapter_of(XL, TO_Q)).flags == ()


def test_inspect_says_that_it_needs_the_base_model(tmp_path, capsys):
    adapter = both_spellings(XL, TO_Q, TO_Q, seed=1)
    tensors = {}
    for module in adapter.modules:
        tensors |= {f"{module.path}.lora_down.weight": module.down}
        tensors |= {f"{module.path}.lora_up.weight": module.up}
    file = tmp_path / "a.safetensors"
    save_file(tensors, file)
    assert run(["inspect", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"flags: {BOTH_SPELLINGS}" in said
    base = builders.save_folder(builders.build_unet(builders.TINY_XL), tmp_path / "base")
    assert run(["inspect", str(file), "--source", str(base)]) == 1
    assert "found twice with different numbers" in " ".join(capsys.readouterr().err.split())


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
