"""What a base model says of given noisy pictures, and latents that it draws: numbers, not pictures.

For who compares two nets on the same rows (`refine`). Texts are embedded once, a row for each
prompt; pictures name theirs by its place. So a row costs its latents alone, and each base model has
texts of its own making.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from prolora_jax.nets.adapters.adapted import adapted
from prolora_jax.nets.adapters.lora import Scale, attached_places
from prolora_jax.nets.pipelines.devices import devices_of, each_a_share
from prolora_jax.nets.pipelines.pipeline import Pipeline, Told
from prolora_jax.nets.promotion import numpy_promotion
from prolora_jax.nets.sampling.denoising import conditions, denoise
from prolora_jax.nets.sampling.noise import picture_keys, starting_noise
from prolora_jax.nets.unet.loading import Params

Latents = Float[np.ndarray, "batch channels height width"]
Count = Callable[[int, int], None]
"""Called with how many of how many are done."""


def filled_batches(total: int, at_once: int) -> Iterator[tuple[int, Int[np.ndarray, " at_once"]]]:
    """Batches of one size, so that one program serves all: the last is filled up with its own rows.

    Args:
        total: rows.
        at_once: rows of a batch.

    Yields:
        The first row, and the places of all.
    """
    for begin in range(0, total, at_once):
        yield begin, np.resize(np.arange(begin, min(begin + at_once, total)), at_once)


def embedded(
    pipeline: Pipeline,
    params: Params,
    prompts: Sequence[str],
    scales: Mapping[str, Scale],
    *,
    at_once: int = 16,
) -> Told:
    """What the UNet is told of prompts, by the base model's own text encoders.

    Args:
        pipeline: of `load_pipeline`.
        params: of all components, with adapters beside the kernels (`attach`).
        prompts: one for each row.
        scales: of the adapters to be used; those without a text encoder's module are passed over.
        at_once: prompts in one batch.

    Returns:
        Arrays of the host, float32, a row for each prompt.
    """
    parts = tuple(name for name in params if name.startswith("text_encoder"))
    used = {name: s for name, s in scales.items() if attached_places(params, name) & {*parts}}
    texts = {name: params[name] for name in parts}
    tokens = pipeline.tokens(list(prompts))
    embed = partial(_embed, pipeline)
    found = []
    for _, some in filled_batches(len(prompts), at_once):
        told = embed(texts, tokens[some], used)
        found.append(jax.tree.map(lambda a: np.asarray(a, np.float32), told))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(prompts)], *found)


def draw_latents(
    pipeline: Pipeline,
    params: Params,
    told: Told,
    places: Int[np.ndarray, " n"],
    seeds: Sequence[int],
    *,
    scales: Mapping[str, Scale],
    size: tuple[int, int],
    steps: int,
    guidance: float,
    empty: int,
    at_once: int = 4,
    mesh: Mesh | None = None,
    count: Count = lambda done, total: None,
) -> Latents:
    """Latents from noise, one picture for each place and seed.

    Args:
        pipeline: of `load_pipeline`.
        params: of all components, with adapters beside the kernels.
        told: of `embedded`.
        places: the row of `told` that each picture shows.
        seeds: of the noise, one for each picture.
        scales: of the adapters to be used.
        size: height and width in latents.
        steps: of the pipeline's sampler.
        guidance: how much the prompt counts against the one at `empty`; 1 or less for not at all.
        empty: the row of `told` that says nothing.
        at_once: pictures in one batch; on a mesh for each device.
        mesh: devices with an axis `data`, over which the pictures of a batch are spread; `params`
            have to be on all of them.
        count: called with how many are done.

    Returns:
        As the net is shown them without noise, float32.
    """
    shape = (pipeline.unet.config.tensors.in_channels, *size)
    used = _on_unet(params, scales)
    draw = partial(_draw, pipeline, steps, guidance > 1)
    untold = jax.tree.map(lambda a: a[empty : empty + 1], told)
    found = []
    for begin, some in filled_batches(len(places), at_once * devices_of(mesh)):
        count(begin, len(places))
        keys = picture_keys([seeds[int(i)] for i in some])
        said = jax.tree.map(lambda a, rows=places[some]: a[rows], told)
        said, start, keys = each_a_share((said, starting_noise(keys, shape), keys), mesh)
        drawn = draw(params["unet"], said, untold, start, keys, guidance, used)
        found.append(np.asarray(drawn, np.float32)[: len(places) - begin])
    count(len(places), len(places))
    return np.concatenate(found)


def answers(
    pipeline: Pipeline,
    params: Params,
    told: Told,
    noisy: Latents,
    times: Float[np.ndarray, " batch"],
    places: Int[np.ndarray, " batch"],
    *,
    scales: Mapping[str, Scale],
    at_once: int = 4,
    mesh: Mesh | None = None,
    count: Count = lambda done, total: None,
) -> Latents:
    """What the UNet predicts, without guidance.

    Args:
        pipeline: of `load_pipeline`.
        params: of all components, with adapters beside the kernels.
        told: of `embedded`.
        noisy: what it is shown.
        times: of its training, one for each row.
        places: the row of `told` that each row is told.
        scales: of the adapters to be used.
        at_once: rows in one batch; on a mesh for each device.
        mesh: devices with an axis `data`, over which the rows of a batch are spread; `params` have
            to be on all of them.
        count: called with how many are done.

    Returns:
        float32, as `noisy`.
    """
    ask = partial(_ask, pipeline)
    used = _on_unet(params, scales)
    found = []
    for begin, some in filled_batches(len(noisy), at_once * devices_of(mesh)):
        count(begin, len(noisy))
        said = jax.tree.map(lambda a, rows=places[some]: a[rows], told)
        asked = each_a_share((noisy[some], np.asarray(times[some], np.float32), said), mesh)
        given = ask(params["unet"], *asked, used)
        found.append(np.asarray(given)[: len(noisy) - begin])
    count(len(noisy), len(noisy))
    return np.concatenate(found)


def predicted(
    pipeline: Pipeline, unet: Params, noisy: Array, times: Array, told: Told
) -> Float[Array, "batch channels height width"]:
    """One call of the UNet, to be compiled by the caller; in float32 whatever it computes in."""
    text, added = conditions(pipeline, told, None, noisy.shape)
    said = pipeline.unet.apply({"params": unet}, noisy, times, text, added)
    return jnp.asarray(said, jnp.float32)


def _on_unet(params: Params, scales: Mapping[str, Scale]) -> dict[str, Scale]:
    return {name: s for name, s in scales.items() if "unet" in attached_places(params, name)}


@partial(jax.jit, static_argnums=0)
def _embed(pipeline: Pipeline, params: Params, tokens: Array, scales: dict[str, Any]) -> Told:
    with numpy_promotion(), adapted(scales):
        return pipeline.embed(params, tokens)


@partial(jax.jit, static_argnums=0)
def _ask(
    pipeline: Pipeline,
    unet: Params,
    noisy: Array,
    times: Array,
    told: Told,
    scales: dict[str, Any],
) -> Array:
    with adapted(scales):
        return predicted(pipeline, unet, noisy, times, told)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _draw(
    pipeline: Pipeline,
    steps: int,
    guided: bool,
    unet: Params,
    told: Told,
    untold: Told,
    noise: Array,
    keys: Array,
    guidance: Any,
    scales: dict[str, Any],
) -> Array:
    without = None
    if guided:
        without = jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), untold, told)
    with numpy_promotion(), adapted(scales):
        return denoise(
            pipeline,
            {"unet": unet},
            noise,
            told,
            without,
            keys=keys,
            steps=steps,
            guidance=guidance,
        )
