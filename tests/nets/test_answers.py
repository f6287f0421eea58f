"""What a base model says of given rows is what torch's says, with an adapter and without."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipelines
import torch
from numpy.testing import assert_allclose
from tiny_pipelines import PROMPTS

import prolora_jax as pl
from prolora_jax.errors import BaseModelError
from prolora_jax.nets.adapters.lora import attach
from prolora_jax.nets.adapters.tree import spec_of
from prolora_jax.nets.pipelines.answers import answers, draw_latents, embedded
from prolora_jax.nets.sampling import levels

pytestmark = pytest.mark.usefixtures("little_optimized")

ROWS = 3
SIDE = tiny_pipelines.SIZE // 2


@pytest.fixture(scope="module", params=["sd15", "ssd-1b"])
def both(request, tmp_path_factory) -> tuple[Any, Any, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    pipe = tiny_pipelines.make_pipeline(folder, request.param, short=True)
    return pipe, *pl.load_pipeline(folder)


def torch_says(pipe: Any, noisy: np.ndarray, times: np.ndarray, prompts: list[str]) -> np.ndarray:
    """Predictions of torch's pipeline, its own text encoders and sizes with it."""
    more: dict[str, Any] = {}
    with torch.no_grad():
        if hasattr(pipe, "text_encoder_2"):
            text, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
            pixels = SIDE * pipe.vae_scale_factor
            sizes = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * len(prompts))
            more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        else:
            text, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
        found = pipe.unet(torch.tensor(noisy), torch.tensor(times), text, **more)
    return found.sample.numpy()


def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    noisy = rng.standard_normal((ROWS, 4, SIDE, SIDE), np.float32)
    return noisy, np.array([1.0, 500.0, 990.0], np.float32), np.array([1, 0, 1])


def test_answers_are_torchs_whatever_is_asked_at_once(both):
    pipe, pipeline, params = both
    noisy, times, places = rows()
    want = torch_says(pipe, noisy, times, [PROMPTS[i] for i in places])
    told = embedded(pipeline, params, PROMPTS, {})
    for at_once in (2, 4):
        found = answers(pipeline, params, told, noisy, times, places, scales={}, at_once=at_once)
        assert found.shape == noisy.shape
        assert_allclose(found, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_an_adapter_changes_texts_and_net_by_its_scale(both, tmp_path: Path):
    pipe, pipeline, params = both
    noisy, times, places = rows()
    spec = spec_of(params)
    rng = np.random.default_rng(1)
    modules = []
    for path in sorted(spec.modules):
        if path.endswith(("to_q", "q_proj")):
            out, width, *_ = spec.modules[path].shape
            down, up = rng.standard_normal((2, width)), rng.standard_normal((out, 2))
            down, up = (1.5 * x.astype(np.float32) for x in (down, up))
            modules.append(pl.LoraModule(path, down, up, 2.0))
    adapter = pl.Adapter(tuple(modules), "diffusers")
    beside = attach(params, {"style": adapter})
    merged = pl.merge(params, adapter, 0.5)
    want_told = embedded(pipeline, merged, PROMPTS, {})
    told = embedded(pipeline, beside, PROMPTS, {"style": 0.5})
    assert_allclose(told.text, want_told.text, rtol=0, atol=1e-5)
    plain = embedded(pipeline, params, PROMPTS, {})
    assert np.abs(told.text - plain.text).max() > 1e-3
    asked = noisy, times, places
    found = answers(pipeline, beside, told, *asked, scales={"style": 0.5})
    want = answers(pipeline, merged, want_told, *asked, scales={})
    assert_allclose(found, want, rtol=0, atol=1e-4 * np.abs(want).max())
    without = answers(pipeline, beside, plain, *asked, scales={})
    assert_allclose(without, answers(pipeline, params, plain, *asked, scales={}), rtol=0, atol=0)
    assert np.abs(found - without).max() > 1e-3


def test_latents_are_those_of_a_picture(both):
    _, pipeline, params = both
    told = embedded(pipeline, params, [*PROMPTS, ""], {})
    size = SIDE, SIDE
    found = draw_latents(
        pipeline,
        params,
        told,
        np.array([0, 1]),
        [5, 6],
        scales={},
        size=size,
        steps=2,
        guidance=1.0,
        empty=2,
        at_once=2,
    )
    pictures = np.asarray(pipeline.decode(params, jnp.asarray(found)))
    want = pl.generate(pipeline, params, PROMPTS, [5], steps=2, guidance=1.0, size=(16, 16))
    assert_allclose(pictures[0], want[0, 0], rtol=0, atol=1e-4)
    want = pl.generate(pipeline, params, PROMPTS, [6], steps=2, guidance=1.0, size=(16, 16))
    assert_allclose(pictures[1], want[1, 0], rtol=0, atol=1e-4)


def test_levels_are_torchs_and_meet_at_the_same_noise(both):
    pipe, pipeline, _ = both
    kept = pipeline.sampler.config.kept
    assert_allclose(kept, pipe.scheduler.alphas_cumprod.numpy(), rtol=1e-5, atol=0)
    signal, noise = levels.signal_and_noise(kept, np.array([0.0, 999.0]))
    assert_allclose(signal**2 + noise**2, 1, atol=1e-6)
    assert_allclose(signal**2, kept[[0, -1]], rtol=1e-5)
    times = np.array([3.0, 700.0])
    assert levels.same_noise(kept, kept, times) is times
    other = kept[::2]  # trained with half the times
    there = levels.same_noise(kept, other, times)
    assert_allclose(np.interp(there, np.arange(500), other), kept[[3, 700]], rtol=1e-6)
    assert levels.prediction_of(pipeline.sampler, "base") == "epsilon"


def test_nets_that_predict_pictures_are_refused(both):
    _, pipeline, _ = both
    trained = replace(pipeline.sampler.config, prediction_type="sample")
    odd = replace(pipeline.sampler, config=trained)
    with pytest.raises(BaseModelError, match=r"base: the net predicts 'sample'; expected epsilon"):
        levels.prediction_of(odd, "base")
