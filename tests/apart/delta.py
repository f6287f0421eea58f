"""Delta Sampling against a loop over torch's three nets, and as a column of `generate`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from numpy.testing import assert_allclose
from refined_pairs import Pair, loaded, made_pair

import prolora_jax as pl
from prolora_jax.errors import BaseModelError, UsageError
from prolora_jax.evaluation.side_by_side import Request, draw_side_by_side
from prolora_jax.migration.opening import open_pair
from prolora_jax.nets.adapters.tree import spec_of
from prolora_jax.nets.pipelines.delta import draw_delta
from prolora_jax.nets.sampling.noise import picture_keys, starting_noise

pytestmark = pytest.mark.usefixtures("little_optimized")

PROMPT, STEPS, GUIDANCE = "a drawing in ink", 3, 3.0


@pytest.fixture(autouse=True)
def memory_given_back_within() -> None:
    """Programs stay until the file is done: every test here uses the same ones."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    """The source predicts noise, the target velocity."""
    return made_pair(tmp_path_factory.mktemp("pair"), "sd15", "sd21")


def torch_draws(pair: Pair, noise: np.ndarray) -> np.ndarray:
    """The same loop, with torch's nets and torch's sampler."""
    source, target = pair.source, pair.target
    changed = {m.path.removeprefix("unet."): m for m in pair.given.modules}

    def shift(sign: float) -> None:
        for name, module in changed.items():
            weight = source.unet.get_submodule(name).weight
            delta = module.up.reshape(module.up.shape[0], -1) @ module.down.reshape(2, -1)
            weight += sign * torch.tensor(delta * module.scale).reshape(weight.shape)

    scheduler: Any = target.scheduler
    scheduler.set_timesteps(STEPS)
    latents = torch.tensor(noise)
    with torch.no_grad():
        texts = [torch.cat(p.encode_prompt(PROMPT, "cpu", 1, True)) for p in (source, target)]
        for time in scheduler.timesteps:
            both = torch.cat([latents] * 2)
            own = target.unet(both, time, texts[1]).sample.chunk(2)
            plain = source.unet(both, time, texts[0]).sample.chunk(2)
            shift(1)
            adapted = source.unet(both, time, texts[0]).sample.chunk(2)
            shift(-1)
            kept = scheduler.alphas_cumprod[time]
            told = []
            for v, e, d in zip(own, plain, adapted, strict=True):
                # Both as noise, by the definition of velocity: e = a v + s x.
                noise_of = kept.sqrt() * v + (1 - kept).sqrt() * latents + (d - e)
                clean = (latents - (1 - kept).sqrt() * noise_of) / kept.sqrt()
                told.append(kept.sqrt() * noise_of - (1 - kept).sqrt() * clean)
            empty, said = told[1], told[0]
            predicted = empty + GUIDANCE * (said - empty)
            latents = scheduler.step(predicted, time, latents).prev_sample
        drawn = target.vae.decode(latents / target.vae.config.scaling_factor).sample
    return (drawn / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def test_a_picture_is_torchs(pair: Pair):
    (source, params), target = map(loaded, pair.folders)
    beside = pl.attach(params, {"adapter0": pair.given}, assume_base=spec_of(params).family)
    side = tiny_pipelines.SIZE // 2
    noise = np.asarray(starting_noise(picture_keys([7]), (4, side, side)))
    size = (tiny_pipelines.SIZE, tiny_pipelines.SIZE)
    asked: dict[str, Any] = {"steps": STEPS, "guidance": GUIDANCE, "size": size}
    adapted = source, beside
    drawn = draw_delta(target, adapted, [PROMPT], [7], scales={"adapter0": 1.0}, **asked)
    want = torch_draws(pair, noise)
    without = pl.generate(target[0], target[1], [PROMPT], [7], **asked)
    assert np.abs(drawn - without).max() > 0.01
    assert_allclose(drawn[0], want, rtol=0, atol=1e-4)
    asked["size"] = 12, 16
    with pytest.raises(UsageError, match="size 12x16, 1 at once: expected multiples of 8"):
        draw_delta(target, adapted, ["ink"], [7], scales={}, **asked)


def test_it_is_a_column_of_generate(pair: Pair, tmp_path: Path):
    source, target = pair.folders
    file = tmp_path / "ink.safetensors"
    pl.save_adapter(pair.given, file, base=pl.load_base_model(source).spec)
    size = (tiny_pipelines.SIZE, tiny_pipelines.SIZE)
    request = Request(
        target, ("none", "delta"), (PROMPT,), (7,), (file,), (0.0,), steps=STEPS, size=size
    )
    options = pl.MigrationOptions(method="copy")
    found = draw_side_by_side(request, source, open_pair(source, target), options)
    assert found.changes()["delta"] == pytest.approx(0, abs=1e-5)


def test_other_latents_are_refused(pair: Pair, tmp_path: Path):
    source, target = pair.folders
    config = source / "vae" / "config.json"
    before = config.read_bytes()
    file = tmp_path / "ink.safetensors"
    pl.save_adapter(pair.given, file, base=pl.load_base_model(source).spec)
    request = Request(target, ("delta",), (PROMPT,), (7,), (file,), (1.0,), steps=STEPS)
    tiny_pipelines.edit(config, scaling_factor=0.13)
    try:
        with pytest.raises(BaseModelError, match="its VAE has scaling_factor"):
            draw_side_by_side(request, source, open_pair(source, target), pl.MigrationOptions())
    finally:
        config.write_bytes(before)
