"""The examples of docs/flax.md run as printed, on tiny pipelines."""

import re
from functools import partial
from pathlib import Path

import builders
import jax
import pytest
import tiny_pipelines
import unets
from tiny_pipelines import UNETS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "flax.md"
EXAMPLE = re.compile(r"<!-- test:.*?-->\n```python\n(.*?)```", re.DOTALL)
EXAMPLES = EXAMPLE.findall(PAGE.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pipelines and adapters under the names that the page uses."""
    place = tmp_path_factory.mktemp("flax")
    for base in ("sdxl", "ssd-1b"):
        tiny_pipelines.make_pipeline(place / base, base)
    for name in ("style", "lcm"):
        net = unets.torch_net(UNETS["sdxl"])
        builders.add_lora(net)
        builders.save_by_diffusers(net, place).rename(place / f"{name}.safetensors")
    return place


def test_there_are_examples():
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_example(folder, index, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=unets.QUICK))
    # As a user's JAX is set; the suite's own is stricter.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(EXAMPLES[index], f"docs/flax.md, example {index}", "exec"), {})
    assert capsys.readouterr().out
