"""Pictures in Flax against torch diffusers': the same noise, the same picture, adapter or not."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import builders
import jax
import numpy as np
import pytest
import tiny_pipelines
import torch
import unets
from diffusers.schedulers import scheduling_lcm
from numpy.testing import assert_allclose, assert_array_equal
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from tiny_pipelines import PROMPTS, SIZE, UNETS

import prolora_jax as pl
from prolora_jax.nets.pipelines.generation import generate
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline
from prolora_jax.nets.sampling.noise import fresh_noise, picture_keys

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
NOISE = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 8), np.float32)
STEPS, GUIDANCE = 3, 4.0
ATOL = 1e-5  # of pictures from 0 to 1; they are about 1e-6 apart, after three steps in float32


class Both(NamedTuple):
    """One base model: as torch's pipeline, and as ours."""

    folder: Path
    torch: Any
    pipeline: Pipeline
    params: Any

    def want(self, scale: float | None = None, **given: Any) -> np.ndarray:
        extra = {} if scale is None else {"cross_attention_kwargs": {"scale": scale}}
        found = self.torch(
            prompt=PROMPTS,
            latents=torch.from_numpy(NOISE[:, 0]).clone(),
            height=SIZE,
            width=SIZE,
            output_type="np",
            **extra,
            **{"guidance_scale": GUIDANCE, "num_inference_steps": STEPS} | given,
        )
        return found.images

    def found(self, params: Any = None, **given: Any) -> np.ndarray:
        params = self.params if params is None else params
        options: Any = {"guidance": GUIDANCE, "steps": STEPS} | given
        size = (SIZE, SIZE)
        drawn = generate(
            self.pipeline,
            params,
            PROMPTS,
            [0],
            noise=NOISE,
            size=size,
            **options,
        )
        return drawn[:, 0]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Programs are compiled in a third of the time."""
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=unets.QUICK))


@pytest.fixture(scope="module", params=UNETS)
def both(request, tmp_path_factory) -> Both:
    """The older and the most pruned kind as deep as they are; the others of the same blocks."""
    base = request.param
    short = base not in ("sd15", "ssd-1b")
    return opened(base, tmp_path_factory.mktemp(base), short=short)


def opened(base: str, folder: Path, *, short: bool) -> Both:
    pipe = tiny_pipelines.make_pipeline(folder, base, short=short)
    return Both(folder, pipe, *load_pipeline(folder))


def write_adapter(pipe: Any, folder: Path) -> Path:
    """An adapter of peft's for UNet, convolutions too, and text encoders; diffusers writes it."""
    layers = {}
    for name, targets in (
        ("unet", builders.EVERYTHING),
        ("text_encoder", ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]),
        ("text_encoder_2", ["q_proj", "k_proj", "v_proj", "out_proj"]),
    ):
        part = getattr(pipe, name, None)
        if part is None:
            continue
        # Not its own add_adapter: that of transformers 5.24 asks for a peft that is still to come.
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=targets), part)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for key, parameter in part.named_parameters():
                if "lora_" in key:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(part)
    pipe.save_lora_weights(folder, **layers)
    pipe.unload_lora_weights()
    return folder / "pytorch_lora_weights.safetensors"


def test_the_same_picture_without_and_with_an_adapter(both, tmp_path):
    plain = both.found()
    assert_allclose(plain, both.want(), rtol=0, atol=ATOL)
    file = write_adapter(both.torch, tmp_path)
    adapter = pl.load_adapter(file, pl.load_base_model(both.folder).spec)
    assert {m.path.partition(".")[0] for m in adapter.modules} == set(both.params) - {"vae"}
    both.torch.load_lora_weights(file.parent, weight_name=file.name)
    try:
        want = both.want(scale=0.7)
        assert np.abs(want - plain).max() > 0.05
        tree = pl.attach(both.params, {"style": adapter})
        assert_allclose(both.found(tree, scales={"style": 0.7}), want, rtol=0, atol=ATOL)
        merged = pl.merge(both.params, adapter, 0.7)
        assert_allclose(both.found(merged), want, rtol=0, atol=ATOL)
    finally:
        both.torch.unload_lora_weights()


@pytest.fixture(scope="module")
def ssd(tmp_path_factory) -> Both:
    return opened("ssd-1b", tmp_path_factory.mktemp("ssd"), short=True)


def test_a_migrated_adapter_draws_the_same_in_both(ssd, tmp_path):
    source = tiny_pipelines.make_pipeline(tmp_path / "sdxl", "sdxl", seed=3, short=True)
    file = write_adapter(source, tmp_path)
    bases = pl.load_base_model(tmp_path / "sdxl"), pl.load_base_model(ssd.folder)
    # Random nets are no relatives: the gate is opened, so that something moves.
    options = pl.MigrationOptions(method="prolora", min_similarity=0)
    migrated, report = pl.migrate(pl.load_adapter(file, bases[0].spec), *bases, options)
    assert report.counts["project"] > 20
    pl.save_adapter(
        migrated, tmp_path / "moved.safetensors", format="diffusers", base=bases[1].spec
    )
    ssd.torch.load_lora_weights(tmp_path, weight_name="moved.safetensors")
    want = ssd.want()
    ssd.torch.unload_lora_weights()
    assert np.abs(want - ssd.want()).max() > 0.01
    tree = pl.attach(ssd.params, {"moved": migrated})
    assert_allclose(ssd.found(tree), want, rtol=0, atol=ATOL)  # all that is there, at 1
    assert_allclose(ssd.found(tree, scales={}), ssd.want(), rtol=0, atol=ATOL)


def test_negative_prompts_and_no_guidance(ssd):
    bad = "ugly"
    want = ssd.want(negative_prompt=[bad, bad])
    assert_allclose(ssd.found(negative=bad), want, rtol=0, atol=ATOL)
    plain = ssd.found(guidance=1)
    assert_allclose(plain, ssd.want(guidance_scale=1.0), rtol=0, atol=ATOL)
    assert_array_equal(ssd.found(guidance=0), plain)  # as torch takes it, for distilled bases


def test_four_steps_of_lcm(ssd, monkeypatch):
    sampler, keys = ssd.torch.scheduler, picture_keys([0, 0])
    fast = ssd._replace(pipeline=load_pipeline(ssd.folder, sampler="lcm")[0])
    state = fast.pipeline.sampler.set_timesteps(fast.pipeline.sampler.create_state(), 4, (2,))
    noises = iter([np.asarray(fresh_noise(keys, int(t), (4, 8, 8))) for t in state.timesteps])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: torch.tensor(next(noises)))
    ssd.torch.scheduler = scheduling_lcm.LCMScheduler.from_config(sampler.config)
    want = ssd.want(guidance_scale=1.0, num_inference_steps=4)
    ssd.torch.scheduler = sampler
    assert len([*noises]) == 1  # that of the last step, after which there is none
    assert_allclose(fast.found(guidance=1, steps=4), want, rtol=0, atol=ATOL)


def test_a_picture_is_its_own(ssd):
    options: Any = {"steps": STEPS, "size": (SIZE,) * 2, "at_once": 3}
    drawn = generate(ssd.pipeline, ssd.params, PROMPTS, [5, 11], **options)
    assert drawn.shape == (2, 2, 16, 16, 3)
    one = generate(ssd.pipeline, ssd.params, PROMPTS[1:], [11], **options)
    assert_allclose(one[0, 0], drawn[1, 1], rtol=0, atol=1e-5)
    assert np.abs(drawn[1, 0] - drawn[1, 1]).max() > 0.1
    assert_array_equal(generate(ssd.pipeline, ssd.params, PROMPTS, [5, 11], **options), drawn)
