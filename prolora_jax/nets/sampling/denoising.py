"""From noise to latents: the loop of a sampler around the UNet, with guidance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prolora_jax.nets.pipelines.pipeline import Pipeline, Told
from prolora_jax.nets.unet.loading import Params

Effect = Callable[[Array, Array], Array]
Latents = Float[Array, "batch channels height width"]


def denoise(
    pipeline: Pipeline,
    params: Params,
    noise: Latents,
    told: Told,
    untold: Told | None,
    *,
    keys: Array,
    steps: int,
    guidance: Any,
    effect: Effect | None = None,
) -> Latents:
    """Take noise to latents that the VAE can decode; to be compiled by the caller.

    Args:
        pipeline: with the sampler.
        params: of all components.
        noise: standard normal, `(batch, channels, height, width)`.
        told: what the prompts say.
        untold: what the negative prompts say; None for no guidance.
        keys: one for each picture, of the noise that some samplers add on the way.
        steps: of the sampler.
        guidance: `untold + guidance (told - untold)` is predicted (arXiv 2207.12598).
        effect: what is added to each prediction, from what the UNet was shown, row by row, and
            the time: another net's answers (`delta`).

    Returns:
        Latents in float32.
    """
    sampler = pipeline.sampler
    state = sampler.set_timesteps(sampler.create_state(keys), steps, noise.shape)
    text, added = conditions(pipeline, told, untold, noise.shape)

    def step(i: Array, carried: Any) -> Any:
        latents, state = carried
        time = state.timesteps[i]
        given = sampler.scale_model_input(state, latents, time)
        if untold is not None:
            given = _pairs(given, given)
        predicted = jnp.asarray(
            pipeline.unet.apply({"params": params["unet"]}, given, time, text, added), jnp.float32
        )
        if effect is not None:
            predicted = predicted + effect(given, time)
        if untold is not None:
            without, told_so = jnp.moveaxis(predicted.reshape(-1, 2, *predicted.shape[1:]), 1, 0)
            predicted = without + guidance * (told_so - without)
        return sampler.step(state, predicted, time, latents).to_tuple()

    start = noise * state.init_noise_sigma
    latents, _ = jax.lax.fori_loop(0, len(state.timesteps), step, (start, state))
    return latents


def conditions(
    pipeline: Pipeline, told: Told, untold: Told | None, shape: tuple[int, ...]
) -> tuple[Array, dict[str, Array] | None]:
    """What the UNet is given beside the noisy picture and its time.

    Args:
        pipeline: of the UNet.
        told: what the prompts say, a row for each picture.
        untold: what the negative prompts say, likewise; their rows come first of each two.
        shape: of the latents.

    Returns:
        The text, and for SDXL's family sizes and pooled text; a row for each row of the net.
    """
    (text, pooled), rows = told, shape[0]
    if untold is not None:
        text, rows = _pairs(untold.text, text), 2 * rows
    if pooled is None:
        return text, None
    if untold is not None:
        pooled = _pairs(untold.pooled, pooled)
    height, width = (side * pipeline.pixels_per_latent for side in shape[2:])
    sizes = jnp.asarray([height, width, 0, 0, height, width], jnp.float32)
    return text, {
        "text_embeds": pooled,
        "time_ids": jnp.broadcast_to(sizes[None], (rows, len(sizes))),
    }


def _pairs(one: Any, other: Any) -> Array:
    """Rows of both in turn: the two of a picture stay on one device."""
    return jnp.stack((one, other), axis=1).reshape(-1, *one.shape[1:])
