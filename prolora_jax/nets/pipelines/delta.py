"""Delta Sampling: an adapter's effect on its source, added to another base model's predictions.

No file comes out of it, and both base models are in memory: three nets at every step
(arXiv 2512.03056). It is what `prolora refine` distils, so it is shown beside it.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from prolora_jax.engines.progress import Progress
from prolora_jax.nets.adapters.adapted import adapted
from prolora_jax.nets.adapters.lora import Scale, attached_places
from prolora_jax.nets.pipelines.generation import Pictures, require_drawable_request
from prolora_jax.nets.pipelines.pipeline import Pipeline, Told
from prolora_jax.nets.promotion import numpy_promotion
from prolora_jax.nets.sampling import levels
from prolora_jax.nets.sampling.denoising import conditions, denoise
from prolora_jax.nets.sampling.noise import picture_keys, starting_noise
from prolora_jax.nets.text.prompts import Prompts, by_chunks
from prolora_jax.nets.text.weighting import Weighting
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.vae.tiles import VaeTile, tile_for

Nets = tuple[Pipeline, Params]


def draw_delta(
    target: Nets,
    source: Nets,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    scales: Mapping[str, Scale],
    steps: int,
    guidance: float,
    size: tuple[int, int],
    negative: str | None = None,
    weighting: Weighting = "numbers",
    at_once: int = 1,
    vae_tile: VaeTile = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> Pictures:
    """Draw every prompt with every seed: `v_t + v_{s+D} - v_s` at each step.

    Args:
        target: who draws, its sampler, and parameters.
        source: whose adapters are beside its kernels (`attach`).
        prompts: what to draw.
        seeds: of the noise that each picture starts from, as for `generate`.
        scales: of the source's adapters.
        steps: of the target's sampler.
        guidance: how much the prompt counts against the negative one; 1 or less for not at all.
        size: height and width in pixels, multiples of 8.
        negative: what not to draw.
        weighting: which brackets in prompts weigh what they hold, as for `generate`.
        at_once: pictures in one batch.
        vae_tile: whether pictures are decoded in tiles, as for `generate`.
        progress: called with the stage, and how many pictures of how many are done.

    Returns:
        Pictures with values from 0 to 1, `(prompts, seeds, height, width, 3)`, float32.

    Raises:
        BaseModelError: what a net predicts cannot be compared.
        UsageError: as for `generate`.
    """
    pipeline = target[0]
    require_drawable_request(prompts, seeds, size, steps, at_once, None, pipeline)
    side = pipeline.pixels_per_latent
    shape = (pipeline.unet.config.tensors.in_channels, size[0] // side, size[1] // side)
    nets = (pipeline, source[0])
    empty = tuple(negative is None and net.zeros_for_empty for net in nets)
    tile = tile_for(vae_tile, size, pipeline.vae.config)
    draw = _compiled(nets, steps, guidance > 1, empty, tile)
    against = negative or "" if guidance > 1 else ""
    total, done = len(prompts) * len(seeds), 0
    found = np.empty((len(prompts), len(seeds), *size, 3), np.float32)
    models = [net.tokenizers for net in nets]
    for chunks, places in by_chunks(models, prompts, against, weighting).items():
        asked = {"weighting": weighting, "chunks": chunks}
        told = [net.prompts([prompts[place] for place in places], **asked) for net in nets]
        untold = tuple(net.prompts([against], **asked) for net in nets)
        jobs = [(row, seed) for row in range(len(places)) for seed in range(len(seeds))]
        drawn = []
        for begin in range(0, len(jobs), at_once):
            progress("drawing", done + begin, total)
            some = (jobs[begin : begin + at_once] * at_once)[:at_once]
            keys = picture_keys([seeds[seed] for _, seed in some])
            rows = tuple(one.rows([row for row, _ in some]) for one in told)
            given = rows, untold, starting_noise(keys, shape), keys
            pictures = draw((target[1], source[1]), *given, guidance, dict(scales))
            drawn.append(np.asarray(pictures)[: len(jobs) - begin])
        found[places] = np.concatenate(drawn).reshape(-1, *found.shape[1:])
        done += len(jobs)
    progress("drawing", total, total)
    return found


@lru_cache(maxsize=4)
def _compiled(
    nets: tuple[Pipeline, Pipeline],
    steps: int,
    guided: bool,
    empty: tuple[bool, bool],
    tile: int | None,
) -> Any:
    target, source = nets

    def draw(
        params: tuple[Params, Params],
        prompts: tuple[Prompts, Prompts],
        negatives: tuple[Prompts, Prompts],
        noise: Array,
        keys: Array,
        guidance: Any,
        scales: dict[str, Any],
    ) -> Array:
        def told_by(place: int) -> tuple[Told, Told | None]:
            told = nets[place].embed(params[place], *prompts[place])
            if not guided:
                return told, None
            one = nets[place].embed(params[place], *negatives[place])
            one = jax.tree.map(lambda x: jnp.zeros_like(x) if empty[place] else x, one)
            return told, jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), one, told)

        with numpy_promotion():
            own, plain = told_by(0), told_by(1)
            with adapted(_of_parts(params[1], scales, ("text_encoder", "text_encoder_2"))):
                changed = told_by(1)
            effect = _effect_of(nets, params[1], plain, changed, scales, noise.shape)
            latents = denoise(
                target,
                params[0],
                noise,
                *own,
                keys=keys,
                steps=steps,
                guidance=guidance,
                effect=effect,
            )
        return target.decode(params[0], latents, tile)

    return jax.jit(draw)


def _of_parts(
    params: Params, scales: Mapping[str, Scale], parts: tuple[str, ...]
) -> dict[str, Scale]:
    """The adapters that have modules in some components: others would be missed there."""
    return {n: s for n, s in scales.items() if attached_places(params, n) & {*parts}}


def _effect_of(
    nets: tuple[Pipeline, Pipeline],
    params: Params,
    plain: tuple[Told, Told | None],
    changed: tuple[Told, Told | None],
    scales: dict[str, Any],
    shape: tuple[int, ...],
) -> Any:
    """What adapters change on the source, as the target would have said it."""
    target, source = nets
    kept, other = (net.sampler.config.kept for net in nets)
    of, to = (levels.prediction_of(nets[i].sampler, ("target", "source")[i]) for i in (1, 0))
    whole = np.arange(len(kept), dtype=np.float64)
    times = jnp.asarray(levels.same_noise(kept, other, whole), jnp.float32)
    signals, noises = (jnp.asarray(side) for side in levels.signal_and_noise(kept, whole))
    on_unet = _of_parts(params, scales, ("unet",))
    asked = [conditions(source, *told, shape) for told in (changed, plain)]

    def at(table: Array, time: Array) -> Array:
        steps = jnp.arange(len(table), dtype=jnp.float32)
        return jnp.interp(jnp.asarray(time, jnp.float32), steps, table)

    net = {"params": params["unet"]}

    def effect(given: Array, time: Array) -> Array:
        said = []
        for used, (text, added) in zip((on_unet, {}), asked, strict=True):
            with adapted(used):
                answer = source.unet.apply(net, given, at(times, time), text, added)
            said.append(jnp.asarray(answer, jnp.float32))
        change = said[0] - said[1]
        if of == to:
            return change
        # A difference of predictions: what is clean in both cancels out, and a factor is left.
        signal = at(signals, time)
        return change / signal if to == "v_prediction" else change * signal

    return effect
