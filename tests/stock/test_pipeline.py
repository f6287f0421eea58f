"""`stock_pipeline`: diffusers' own Flax pipelines draw, with our nets, what torch's draw."""

from functools import partial
from types import SimpleNamespace as Bag
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipelines
import torch
import unets
from diffusers.pipelines.stable_diffusion.pipeline_flax_stable_diffusion import (
    FlaxStableDiffusionPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from numpy.testing import assert_allclose
from tiny_pipelines import PROMPTS, SIZE

from prolora_jax.nets.pipelines.diffusers_flax import theirs
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline
from prolora_jax.nets.pipelines.stock import stock_pipeline
from prolora_jax.nets.promotion import numpy_promotion
from prolora_jax.nets.sampling.samplers import sampler_named
from prolora_jax.nets.sampling.scheduler import TableSampler

# torch's samplers say it themselves, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
NOISE = np.random.default_rng(0).standard_normal((2, 4, 8, 8), np.float32)
GIVEN: dict[str, Any] = {"num_inference_steps": 3, "height": SIZE, "width": SIZE}
GUIDANCE = 4.0
ATOL = 1e-5  # of pictures from 0 to 1; they are about 1e-6 apart, after three steps in float32


# The two classes; that every base model's net predicts what torch's does is asked in tests/nets.
@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_they_draw_what_torch_draws(base, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=unets.QUICK))
    by_torch = tiny_pipelines.make_pipeline(tmp_path / "tiny", base)
    if base == "sd15":
        # With PNDM its loop leaves out the last of the evaluations, one more than steps.
        by_torch.scheduler = DDIMScheduler.from_pretrained(tmp_path / "tiny" / "scheduler")
    latents = torch.from_numpy(NOISE).clone()
    want = by_torch(
        prompt=PROMPTS, latents=latents, output_type="np", guidance_scale=GUIDANCE, **GIVEN
    ).images
    sampler = "ddim" if base == "sd15" else "auto"
    pipe, params = stock_pipeline(*load_pipeline(tmp_path / "tiny", sampler=sampler))
    with theirs():
        found = pipe(
            pipe.prepare_inputs(PROMPTS),
            params,
            jax.random.key(0),
            # Not a float: of one it makes an array that does not go with several pictures.
            guidance_scale=jnp.float32(GUIDANCE),
            latents=jnp.asarray(NOISE),
            **GIVEN,
        ).images
    assert want.std() > 0.05
    assert_allclose(np.asarray(found), want, rtol=0, atol=ATOL)


def net(sample: Any, t: Any) -> Any:
    """Stands for a net."""
    return 0.7 * jnp.tanh(3 * sample) + 1e-5 * t


def sampled(scheduler: TableSampler, state: Any) -> np.ndarray:
    """A whole run, step by step."""
    state = scheduler.set_timesteps(state, 4, NOISE.shape)
    sample = jnp.asarray(NOISE) * state.init_noise_sigma
    for t in state.timesteps:
        shown = scheduler.scale_model_input(state, sample, t)
        predicted = net(shown, t.astype(jnp.float32))
        sample, state = scheduler.step(state, predicted, t, sample).to_tuple()
    return np.asarray(sample)


def test_lcm_stands_in_their_loop():
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = sampler_named("lcm", betas, origin="a.json")
    state = scheduler.create_state(9)
    pipeline = Bag(
        scheduler=scheduler,
        text_encoder=lambda ids, params: [jnp.zeros((*ids.shape, 2))],
        unet=Bag(config=Bag(in_channels=4)),
        vae=Bag(config=Bag(scaling_factor=1.0), decode=None),
        vae_scale_factor=8,
    )
    pipeline.unet.apply = lambda _, x, t, **__: Bag(sample=net(x, t[0] * 1.0))
    pipeline.vae.apply = lambda _, latents, method: Bag(sample=latents)
    params = {"scheduler": state} | dict.fromkeys(("text_encoder", "unet", "vae"), {})
    ids = jnp.zeros((2, 5), jnp.int32)
    run: Any = FlaxStableDiffusionPipeline._generate
    with numpy_promotion():
        found = run(pipeline, ids, params, None, 4, 64, 64, 1.0, jnp.asarray(NOISE), ids)
    want = sampled(scheduler, state).transpose(0, 2, 3, 1) / 2 + 0.5
    assert_allclose(found, np.clip(want, 0, 1), rtol=0, atol=ATOL)
