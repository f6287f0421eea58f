"""Samplers in Flax against torch's of the same names, over whole runs with a made-up net."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from numpy.testing import assert_allclose

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.nets.pipelines.diffusers_flax import theirs
from prolora_jax.nets.sampling.lcm import LCMScheduler
from prolora_jax.nets.sampling.samplers import sampler_named

# torch's schedulers say it themselves, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD15 = BETAS | {"steps_offset": 1, "skip_prk_steps": True, "set_alpha_to_one": False}
TORCH = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm": DPMSolverMultistepScheduler,
}
NOISE = np.random.default_rng(0).standard_normal((2, 4, 3, 5), np.float32)
RTOL = 5e-6  # of the largest number, after up to 30 steps in float32


@pytest.fixture(autouse=True)
def _relaxed():
    with theirs():
        yield


def drawn_by_torch(name: str, config: dict[str, Any], steps: int) -> np.ndarray:
    sampler: Any = TORCH[name].from_config(config)
    sampler.set_timesteps(steps)
    latents = torch.from_numpy(NOISE) * sampler.init_noise_sigma
    for time in sampler.timesteps:
        given = sampler.scale_model_input(latents, time)
        predicted = torch.sin(given) * 0.9 + time / 3000
        latents = sampler.step(predicted, time, latents).prev_sample
    return latents.numpy()


def drawn(sampler: Any, steps: int) -> np.ndarray:
    @jax.jit
    def run(noise):
        state = sampler.set_timesteps(sampler.create_state(), steps, noise.shape)

        def step(i, carried):
            latents, state = carried
            time = state.timesteps[i]
            given = sampler.scale_model_input(state, latents, time)
            return sampler.step(state, jnp.sin(given) * 0.9 + time / 3000, time, latents).to_tuple()

        start = noise * state.init_noise_sigma
        return jax.lax.fori_loop(0, len(state.timesteps), step, (start, state))[0]

    return np.asarray(run(NOISE))


CASES = [
    *(("ddim", {"timestep_spacing": s}) for s in ("leading", "trailing", "linspace")),
    ("ddim", {"set_alpha_to_one": True, "steps_offset": 0}),
    ("ddim", {"clip_sample": False}),
    ("pndm", {}),
    ("pndm", {"skip_prk_steps": False}),
    *(("euler", {"timestep_spacing": s}) for s in ("leading", "trailing", "linspace")),
    ("euler", {"timestep_spacing": "leading", "steps_offset": 0}),
    *(("dpm", {"timestep_spacing": s}) for s in ("leading", "trailing", "linspace")),
    ("dpm", {"timestep_spacing": "leading", "steps_offset": None}),
]


@pytest.mark.parametrize(("name", "changes"), CASES)
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 30])
def test_whole_runs_equal_torch(name, changes, predicts, steps):
    config = {k: v for k, v in (SD15 | changes).items() if v is not None}
    config |= {"prediction_type": predicts, "_class_name": TORCH[name].__name__}
    sampler = sampler_named("auto", config, origin="x")
    want = drawn_by_torch(name, config, steps)
    assert_allclose(drawn(sampler, steps), want, rtol=0, atol=RTOL * np.abs(want).max())


def test_one_step():
    config = SD15 | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace"}
    want = drawn_by_torch("euler", config, 1)
    found = drawn(sampler_named("auto", config, origin="x"), 1)
    assert_allclose(found, want, rtol=0, atol=RTOL * np.abs(want).max())


def test_another_sampler_than_the_pipelines(caplog):
    karras = SD15 | {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
    euler = sampler_named("euler", karras, origin="x")
    plain = SD15 | {"_class_name": "EulerDiscreteScheduler"}
    assert_allclose(drawn(euler, 4), drawn_by_torch("euler", plain, 4), rtol=1e-5, atol=1e-5)
    assert isinstance(sampler_named("lcm", karras, origin="x"), LCMScheduler)
    assert not caplog.text
    ancestral = SD15 | {"_class_name": "EulerAncestralDiscreteScheduler"}
    found = sampler_named("auto", ancestral, origin="x/scheduler")
    assert type(found) is type(euler)
    assert "x/scheduler: there is no EulerAncestralDiscreteScheduler in Flax; euler" in caplog.text
    flax = SD15 | {"_class_name": "FlaxPNDMScheduler"}
    assert type(found) is not type(sampler_named("auto", flax, origin="x"))


@pytest.mark.parametrize(
    ("name", "field", "value", "match"),
    [
        ("DPMSolverMultistepScheduler", "use_karras_sigmas", True, "expected False.*choose a samp"),
        ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++", "'dpmsolver[+][+]'"),
        ("EulerDiscreteScheduler", "final_sigmas_type", "sigma_min", "expected 'zero'"),
        ("EulerDiscreteScheduler", "timestep_spacing", "odd", "expected 'leading' or 'linspace'"),
        (
            "EulerDiscreteScheduler",
            "beta_schedule",
            "odd",
            "x: .*; expected a noise that",
        ),
        ("PNDMScheduler", "timestep_spacing", "trailing", "expected 'leading'"),
        ("PNDMScheduler", "set_alpha_to_one", True, "expected False"),
        ("DDIMScheduler", "rescale_betas_zero_snr", True, "nothing here draws from this noise"),
        ("LCMScheduler", "rescale_betas_zero_snr", True, "x: field rescale_betas_zero_snr"),
    ],
)
def test_what_flax_passes_over_is_refused(name, field, value, match):
    config = SD15 | {"_class_name": name, field: value}
    with pytest.raises(BaseModelError, match=match) as caught:
        sampler_named("auto", config, origin="x")
    assert caught.value.code is Refusal.UNSUPPORTED_CONFIG
