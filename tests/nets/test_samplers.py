"""Every sampler against torch's of the same name, over whole runs with a made-up net."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import unets
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
    scheduling_euler_discrete,
    scheduling_lcm,
    scheduling_pndm,
    scheduling_unipc_multistep,
)
from numpy.testing import assert_allclose

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.nets.sampling.ddim import ddim
from prolora_jax.nets.sampling.noise import fresh_noise
from prolora_jax.nets.sampling.samplers import SAMPLERS, sampler_named
from prolora_jax.nets.sampling.scheduler import TableSampler
from prolora_jax.nets.sampling.training_noise import TrainingNoise

# torch's schedulers say it themselves, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD15 = BETAS | {"steps_offset": 1, "skip_prk_steps": True, "set_alpha_to_one": False}
SD15 |= {"clip_sample": False}
TORCH = {
    "ddim": scheduling_ddim.DDIMScheduler,
    "pndm": scheduling_pndm.PNDMScheduler,
    "euler": scheduling_euler_discrete.EulerDiscreteScheduler,
    "euler-a": scheduling_euler_ancestral_discrete.EulerAncestralDiscreteScheduler,
    "dpm": scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler,
    "unipc": scheduling_unipc_multistep.UniPCMultistepScheduler,
    "lcm": scheduling_lcm.LCMScheduler,
}
NOISE = np.random.default_rng(0).standard_normal((2, 4, 3, 5), np.float32)
RTOL = 5e-6  # of the largest number, after up to 30 steps in float32
SPACINGS = ("leading", "trailing", "linspace")


def test_every_sampler_is_here():
    assert {"auto", *TORCH} == {*SAMPLERS}


def drawn_by_torch(name: str, config: dict[str, Any], steps: int, monkeypatch: Any) -> np.ndarray:
    """A run of torch's scheduler, that draws our noise where it adds any."""
    sampler: Any = TORCH[name].from_config(config)
    sampler.set_timesteps(steps)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(len(NOISE)))
    module = vars(__import__(type(sampler).__module__, fromlist=["x"]))
    latents = torch.from_numpy(NOISE) * sampler.init_noise_sigma
    for time in sampler.timesteps:
        if "randn_tensor" in module:
            noise = torch.tensor(np.asarray(fresh_noise(keys, int(time), NOISE.shape[1:])))
            monkeypatch.setitem(module, "randn_tensor", lambda *_, noise=noise, **__: noise)
        given = sampler.scale_model_input(latents, time)
        predicted = torch.sin(given) * 0.9 + time / 3000
        latents = sampler.step(predicted, time, latents).prev_sample
    return latents.numpy()


@partial(jax.jit, static_argnums=0, compiler_options=unets.QUICK)
def run(sampler: TableSampler, state: Any, start: Any) -> Any:
    def step(carried, time):
        latents, state = carried
        given = sampler.scale_model_input(state, latents, time)
        out = jnp.sin(given) * 0.9 + time.astype(jnp.float32) / 3000
        return sampler.step(state, out, time, latents).to_tuple(), None

    return jax.lax.scan(step, (start, state), state.timesteps)[0][0]


def drawn(sampler: TableSampler, steps: int) -> np.ndarray:
    state = sampler.set_timesteps(sampler.create_state(0), steps, NOISE.shape)
    # The state has all numbers of the run, so that samplers alike in size share a program.
    loop = replace(sampler, name="", config=TrainingNoise(), fields=(), make=ddim)
    return np.asarray(run(loop, state, NOISE * np.asarray(state.init_noise_sigma)))


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"timestep_spacing": s}) for name in TORCH if name != "lcm" for s in SPACINGS),
    ("ddim", {"set_alpha_to_one": True, "steps_offset": 0}),
    ("ddim", {"clip_sample": None}),  # torch clips then
    ("ddim", {"clip_sample": True, "clip_sample_range": 0.7}),
    ("pndm", {"skip_prk_steps": False}),
    ("pndm", {"set_alpha_to_one": True}),
    ("euler", {"timestep_spacing": "leading", "steps_offset": 0}),
    ("euler", {"use_karras_sigmas": True}),
    ("euler", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0}),
    ("euler", {"final_sigmas_type": "sigma_min"}),
    ("euler", ZERO_SNR),
    ("euler-a", ZERO_SNR),
    ("dpm", {"timestep_spacing": "leading", "steps_offset": None}),
    ("dpm", {"use_karras_sigmas": True}),
    ("dpm", {"solver_type": "heun"}),
    ("dpm", {"solver_order": 1}),
    ("dpm", {"solver_order": 3, "final_sigmas_type": "sigma_min"}),
    ("dpm", {"solver_order": 3, "euler_at_final": True, "lower_order_final": False}),
    ("dpm", ZERO_SNR),
    ("unipc", {"use_karras_sigmas": True}),
    ("unipc", {"solver_order": 1}),
    ("unipc", {"solver_order": 3}),
    ("unipc", ZERO_SNR),
    ("lcm", {}),
    ("lcm", {"original_inference_steps": 100, "timestep_scaling": 0.01}),
    ("lcm", {"clip_sample": True}),
]


@pytest.mark.parametrize(("name", "changes"), CASES)
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 30])
def test_whole_runs_equal_torch(name, changes, predicts, steps, monkeypatch):
    config = {k: v for k, v in (SD15 | changes).items() if v is not None}
    config |= {"prediction_type": predicts, "_class_name": TORCH[name].__name__}
    sampler = sampler_named("auto", config, origin="x")
    want = drawn_by_torch(name, config, steps, monkeypatch)
    # torch adds and takes away, in float32, numbers as large as the noise it starts from.
    atol = RTOL * np.abs(want).max() + 1e-8 * sampler.table(steps).start
    assert_allclose(drawn(sampler, steps), want, rtol=0, atol=atol)


def test_one_step():
    for name in TORCH:
        config = SD15 | {"_class_name": TORCH[name].__name__, "timestep_spacing": "linspace"}
        found = drawn(sampler_named("auto", config, origin="x"), 1)
        with pytest.MonkeyPatch.context() as patch:
            want = drawn_by_torch(name, config, 1, patch)
        # Nearly all that a run begins with is taken away.
        atol = RTOL * max(np.abs(want).max(), np.abs(NOISE).max())
        assert_allclose(found, want, rtol=0, atol=atol, err_msg=name)


def test_other_schedules_of_noise():
    betas = np.linspace(0.001, 0.02, 50).tolist()
    for change in (
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": betas, "num_train_timesteps": 50},
    ):
        config = SD15 | {"_class_name": "DDIMScheduler"} | change
        found = sampler_named("auto", config, origin="x")
        want: Any = TORCH["ddim"].from_config(config)
        assert_allclose(found.config.kept, want.alphas_cumprod, rtol=1e-4, atol=1e-7)
        with pytest.MonkeyPatch.context() as patch:
            expected = drawn_by_torch("ddim", config, 5, patch)
        atol = 1e-5 * np.abs(expected).max()
        assert_allclose(drawn(found, 5), expected, rtol=0, atol=atol)


def test_another_sampler_than_the_pipelines(caplog):
    odd = SD15 | {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"}
    odd |= {"use_exponential_sigmas": True}
    euler = sampler_named("euler", odd, origin="x")
    plain = SD15 | {"_class_name": "EulerDiscreteScheduler"}
    assert euler == sampler_named("auto", plain, origin="x")
    assert sampler_named("lcm", odd, origin="x").name == "lcm"
    assert dict(sampler_named("pndm", BETAS, origin="x").fields)["skip_prk_steps"]
    assert not caplog.text
    unknown = SD15 | {"_class_name": "HeunDiscreteScheduler"}
    assert sampler_named("auto", unknown, origin="x/scheduler") == euler
    assert "x/scheduler: there is no HeunDiscreteScheduler here; euler draws" in caplog.text
    flax = SD15 | {"_class_name": "FlaxPNDMScheduler"}
    assert sampler_named("auto", flax, origin="x").name == "pndm"


@pytest.mark.parametrize(
    ("name", "field", "value", "match"),
    [
        (
            "dpm",
            "algorithm_type",
            "sde-dpmsolver++",
            "'dpmsolver[+][+]'.*a sampler, of ddim",
        ),
        ("dpm", "solver_order", 4, "expected 1 or 2 or 3"),
        ("dpm", "use_beta_sigmas", True, "expected False"),
        ("euler", "interpolation_type", "log_linear", "expected 'linear'"),
        ("euler", "timestep_spacing", "odd", "expected 'leading' or 'linspace'"),
        ("euler", "timestep_type", "continuous", "expected 'discrete'"),
        ("euler", "beta_schedule", "odd", "expected 'scaled_linear' or 'linear' or"),
        ("euler", "use_flow_sigmas", True, "expected False; only the noise of"),
        ("euler", "steps_offset", "1", "expected a number"),
        ("unipc", "final_sigmas_type", "sigma_min", "expected 'zero'"),
        ("unipc", "solver_type", "bh1", "expected 'bh2'"),
        ("unipc", "predict_x0", False, "expected True"),
        ("pndm", "rescale_betas_zero_snr", True, "expected False"),
        ("pndm", "prediction_type", "sample", "expected 'epsilon' or 'v_prediction'"),
        ("ddim", "thresholding", True, "expected False"),
        ("ddim", "prediction_type", "flow", "expected 'epsilon' or 'v_prediction' or 'sample'"),
        ("ddim", "trained_betas", [0.1], "expected null or 1000 numbers between 0 and 1"),
        ("ddim", "beta_start", 0, "expected a number between 0 and 1"),
        ("ddim", "num_train_timesteps", 0, "expected a number of times"),
        ("lcm", "beta_end", 1.5, "expected a number between 0 and 1"),
        ("lcm", "timestep_scaling", "a", "expected a number"),
        ("lcm", "timestep_type", "continuous", "expected 'discrete'"),
    ],
)
def test_what_is_not_followed_is_refused(name, field, value, match):
    config = SD15 | {"_class_name": TORCH[name].__name__, field: value}
    with pytest.raises(BaseModelError, match=f"x: field {field} is .*{match}") as caught:
        sampler_named("auto", config, origin="x")
    assert caught.value.code is Refusal.UNSUPPORTED_CONFIG


def test_what_only_a_run_shows_is_refused():
    blind = SD15 | ZERO_SNR | {"_class_name": "DDIMScheduler"}
    with pytest.raises(BaseModelError, match="rescale_betas_zero_snr with a net that predicts eps"):
        sampler_named("auto", blind, origin="x").table(5)
    long = SD15 | {"_class_name": "LCMScheduler", "original_inference_steps": 2000}
    with pytest.raises(BaseModelError, match="original_inference_steps is 2000; expected 1 to 100"):
        sampler_named("auto", long, origin="x").table(5)
    for name in ("ddim", "pndm"):
        with pytest.raises(UsageError, match="found 1000; expected fewer"):
            sampler_named(name, SD15, origin="x").table(1000)
    sample = SD15 | {"_class_name": "EulerDiscreteScheduler", "prediction_type": "sample"}
    with pytest.raises(BaseModelError, match="prediction_type is 'sample'"):
        sampler_named("pndm", sample, origin="x")
    begins = SD15 | {"_class_name": "PNDMScheduler", "skip_prk_steps": False}
    with pytest.raises(UsageError, match="found 3; expected 4 or more"):
        sampler_named("auto", begins, origin="x").table(3)
    for steps in (0, 1001):
        with pytest.raises(UsageError, match=f"found {steps}; expected 1 to 1000"):
            sampler_named("euler", SD15, origin="x").table(steps)
