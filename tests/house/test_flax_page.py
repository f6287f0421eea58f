"""The examples of docs/flax.md run as printed on tiny pipelines."""

import re
import shlex
from functools import partial
from pathlib import Path

import builders
import jax
import pytest
import tiny_pipelines
import torch
import unets
from PIL import Image

from prolora_jax.cli.main import run

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "flax.md").read_text()
EXAMPLES = re.findall(r"<!-- test:.*?-->\n```python\n(.*?)```", PAGE, re.DOTALL)
DRAWN = re.compile(r"<!-- picture:.*?-->\n```sh\n(.*?)```", re.DOTALL)
COMMANDS = DRAWN.findall(PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pipelines and adapters under the names that the pages use."""
    place = tmp_path_factory.mktemp("flax")
    source = tiny_pipelines.make_pipeline(place / "sdxl", "sdxl").unet.state_dict()
    target = tiny_pipelines.make_pipeline(place / "ssd-1b", "ssd-1b")
    weights = target.unet.state_dict()
    with torch.no_grad():
        for key, weight in weights.items():  # a relative, so that something moves
            if key in source and source[key].shape == weight.shape:
                weight.copy_(source[key] + 0.02 * source[key].std() * torch.randn(weight.shape))
    target.save_pretrained(place / "ssd-1b")
    for name, base in (("style", "sdxl"), ("lcm", "sdxl"), ("lcm-lora-ssd-1b", "ssd-1b")):
        net = unets.torch_net(tiny_pipelines.UNETS[base])
        builders.add_lora(net)
        builders.save_by_diffusers(net, place).rename(place / f"{name}.safetensors")
    return place


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PROLORA_STORE", str(folder / "store"))
    monkeypatch.setenv("PROLORA_TRACEBACK", "1")
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=unets.QUICK))


def test_there_are_examples():
    assert (len(EXAMPLES), len(COMMANDS)) == (6, 2)


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_example(index, capsys):
    # As a user's JAX is set; the suite's own is stricter.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(EXAMPLES[index], f"docs/flax.md, example {index}", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("index", range(len(COMMANDS)))
def test_command(index, folder, tmp_path, capsys):
    program, *words = shlex.split(COMMANDS[index].replace("\\\n", " "))
    assert program == "prolora"
    out = words[words.index("--out") + 1]
    (folder / out).unlink(missing_ok=True)
    assert run([*words, "-q"]) == 0
    assert f"Wrote {out}" in capsys.readouterr().out
    with Image.open(folder / out) as sheet:
        assert min(sheet.size) > 128
