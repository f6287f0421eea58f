"""The libraries that had Flax: which versions are asked for, and that nothing else needs them."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import tiny_pipelines
import unets
from patience import UNTIL_HUNG

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.pipelines.diffusers_flax import theirs
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline
from prolora_jax.nets.pipelines.stock import stock_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "tiny"
    tiny_pipelines.make_pipeline(folder, "sdxl", short=True)
    return folder


@pytest.mark.parametrize(
    ("library", "number", "found"),
    [
        ("diffusers", None, "no such library; expected diffusers<0.40"),
        ("transformers", None, "no such library; expected transformers<5"),
        ("diffusers", "0.40.0", "version 0.40.0; expected diffusers<0.40"),
        ("diffusers", "1.0", "version 1.0; expected diffusers<0.40"),
        ("transformers", "5.0.0rc1", "version 5.0.0rc1; expected transformers<5"),
    ],
)
def test_libraries_without_flax(library, number, found, folder, monkeypatch):
    there = {"diffusers": "0.39.0", "transformers": "4.57.6"} | {library: number}

    def stand_in(name: str) -> str:
        if there[name] is None:
            raise PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr("prolora_jax.nets.pipelines.diffusers_flax.version", stand_in)
    match = rf"{library}: found {found}, the last with Flax, .*pip install 'diffusers<0.40'"
    pipeline, params = load_pipeline(folder)  # needs neither
    for use in (lambda: stock_pipeline(pipeline, params), enter):
        with pytest.raises(UsageError, match=match) as caught:
            use()
        assert caught.value.code is Refusal.MISSING_LIBRARY


def test_those_of_today_are_refused(folder):
    # As they are here; tests/stock runs with the last that have Flax.
    with pytest.raises(UsageError, match=r"diffusers: found version \d.*; expected diffusers<0.40"):
        stock_pipeline(*load_pipeline(folder))


def enter() -> None:
    with theirs():
        pass


def test_torch_diffusers_and_transformers_are_not_needed(folder):
    code = f"""
import sys
from functools import partial
sys.modules |= dict.fromkeys(("torch", "diffusers", "transformers"))
import jax
jax.jit = partial(jax.jit, compiler_options={unets.QUICK!r})
from prolora_jax.nets.pipelines.generation import generate
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline
from prolora_jax.nets.pipelines.stock import stock_pipeline
pipeline, params = load_pipeline({str(folder)!r}, dtype="bfloat16")
kinds = {{name: {{str(a.dtype) for a in jax.tree.leaves(params[name])}} for name in params}}
half = dict.fromkeys(("unet", "text_encoder", "text_encoder_2"), {{"bfloat16"}})
assert kinds == half | {{"vae": {{"float32"}}}}
drawn = generate(pipeline, params, ["ink"], [3], steps=1, guidance=1, size=(16, 16))
assert drawn.shape == (1, 1, 16, 16, 3) and 0 <= drawn.min() < drawn.max() <= 1
assert drawn.std() > 0.01
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=UNTIL_HUNG
    )
    assert done.returncode == 0, done.stderr
