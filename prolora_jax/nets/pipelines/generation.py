"""Pictures from prompts and seeds, compiled once, over as many devices as there are."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Array, Float

from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.adapters.adapted import adapted
from prolora_jax.nets.adapters.lora import Scale, attached_names
from prolora_jax.nets.pipelines.devices import DATA_AXIS, devices_of, each_a_share, on_all
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.promotion import numpy_promotion
from prolora_jax.nets.sampling.denoising import denoise
from prolora_jax.nets.sampling.noise import picture_keys, starting_noise
from prolora_jax.nets.text.prompts import Prompts, by_chunks
from prolora_jax.nets.text.weighting import Weighting
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.vae.tiles import VaeTile, tile_for

Pictures = Float[np.ndarray, "prompts seeds height width 3"]


def generate(
    pipeline: Pipeline,
    params: Params,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative: str | None = None,
    weighting: Weighting = "numbers",
    steps: int = 25,
    guidance: float = 7.5,
    size: tuple[int, int] | None = None,
    scales: Mapping[str, Scale] | None = None,
    noise: Float[np.ndarray, "_ _ _ _ _"] | None = None,
    at_once: int = 4,
    vae_tile: VaeTile = "auto",
    mesh: Mesh | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Pictures:
    """Draw every prompt with every seed.

    A picture depends on its prompt and its seed, not on the others, nor on how many are drawn at
    once, beyond the rounding of sums.

    Args:
        pipeline: of `load_pipeline`.
        params: of all components; with adapters beside the kernels (`attach`) or merged.
        prompts: what to draw, of any length: more than one encoder can take is told in chunks.
        seeds: of the noise that each picture starts from; other noise than torch's of that seed.
        negative: what not to draw.
        weighting: which brackets in prompts weigh what they hold: `numbers`, such as `(ink:1.2)`;
            `all`, `(ink)` by 1.1 and `[ink]` by 1 / 1.1, too; `off`, none.
        steps: of the sampler.
        guidance: how much the prompt counts against the negative one; 1 or less for not at all,
            which is half the work.
        size: height and width in pixels, multiples of 8; None for what the base was trained on.
        scales: of the adapters to be used, by name; None for all that are beside the kernels, at 1.
        noise: to start from instead, standard normal, `(prompts, seeds, channels, rows, columns)`,
            such as torch's: then pictures are torch's, too.
        at_once: pictures in one batch; on a mesh for each device.
        vae_tile: pictures are decoded in tiles of so many pixels, height and width: less memory,
            and not quite the same picture; `off`: in one piece; `auto`: in tiles of 512 above
            1024 x 1024 pixels.
        mesh: devices with an axis `data`, over which the pictures of a batch are spread. Parameters
            that are on all of them stay as they are, others are copied to each.
        progress: called with the stage, and how many pictures of how many are done.

    Returns:
        Pictures with values from 0 to 1, `(prompts, seeds, height, width, 3)`, float32.

    Raises:
        UsageError: nothing to draw, a size that is not a multiple, too few steps or too many, noise
            of another shape, a mesh without the axis, or no adapter of a name.
    """
    height, width = size or (pipeline.pixels,) * 2
    require_drawable_request(prompts, seeds, (height, width), steps, at_once, mesh, pipeline)
    against = negative or "" if guidance > 1 else ""
    empty = negative is None and pipeline.zeros_for_empty
    tile = tile_for(vae_tile, (height, width), pipeline.vae.config)
    draw = _compiled(pipeline, steps, guidance > 1, empty, tile)
    side = pipeline.pixels_per_latent
    shape = (pipeline.unet.config.tensors.in_channels, height // side, width // side)
    whole = (len(prompts), len(seeds), *shape)
    if noise is not None and noise.shape != whole:
        raise UsageError(
            f"noise of shape {noise.shape}: expected {whole}, a picture's latents for each prompt "
            f"and seed; correct it",
            code=Refusal.BAD_OPTION,
        )
    devices = devices_of(mesh)
    if mesh is not None:
        # What goes where inside is left to XLA, also if the axes are explicit (jax.make_mesh).
        names = mesh.axis_names
        mesh = Mesh(mesh.devices, names, axis_types=(AxisType.Auto,) * len(names))
        params = on_all(params, mesh)
    if scales is None:
        scales = dict.fromkeys(sorted(attached_names(params)), 1.0)
    total, done = len(prompts) * len(seeds), 0
    found = np.empty((len(prompts), len(seeds), height, width, 3), np.float32)
    for chunks, places in by_chunks([pipeline.tokenizers], prompts, against, weighting).items():
        given = {"weighting": weighting, "chunks": chunks}
        told = pipeline.prompts([prompts[place] for place in places], **given)
        untold = pipeline.prompts([against], **given)
        jobs = [(row, seed) for row in range(len(places)) for seed in range(len(seeds))]
        batch = min(at_once, -(-len(jobs) // devices)) * devices
        drawn = []
        for begin in range(0, len(jobs), batch):
            progress("drawing", done + begin, total)
            # The last batch is filled up: another size would be compiled again.
            some = (jobs[begin : begin + batch] * batch)[:batch]
            rows, columns = map(list, zip(*some, strict=True))
            keys = picture_keys([seeds[seed] for seed in columns])
            if noise is None:
                start = starting_noise(keys, shape)
            else:
                start = noise[[places[row] for row in rows], columns]
            shares = each_a_share((told.rows(rows), start, keys), mesh)
            with nullcontext() if mesh is None else jax.set_mesh(mesh):
                pictures = draw(params, *shares, untold, guidance, dict(scales))
            drawn.append(np.asarray(pictures)[: len(jobs) - begin])
        found[places] = np.concatenate(drawn).reshape(-1, *found.shape[1:])
        done += len(jobs)
    progress("drawing", total, total)
    return found


def require_drawable_request(
    prompts: Sequence[str],
    seeds: Sequence[int],
    size: tuple[int, int],
    steps: int,
    at_once: int,
    mesh: Mesh | None,
    pipeline: Pipeline,
) -> None:
    """Refuse what cannot be drawn, before anything is compiled.

    Args:
        prompts: what to draw.
        seeds: of the noise.
        size: height and width in pixels.
        steps: of the sampler.
        at_once: pictures in one batch.
        mesh: devices, if several.
        pipeline: who draws.

    Raises:
        UsageError: nothing to draw, a size that is no multiple of 8, too few steps or too many, or
            a mesh without an axis `data`.
    """
    most = pipeline.sampler.config.num_train_timesteps
    height, width = size
    if not prompts or not seeds:
        problem = f"{len(prompts)} prompts, {len(seeds)} seeds: expected at least one of each"
    elif height % 8 or width % 8 or min(size) < 8 or at_once < 1:
        problem = f"size {height}x{width}, {at_once} at once: expected multiples of 8, 1 or more"
    elif not 1 <= steps <= most:
        problem = f"steps {steps}: expected 1 to {most}, the times that the net was trained for"
    elif mesh is not None and DATA_AXIS not in mesh.axis_names:
        problem = f"mesh with axes {mesh.axis_names}: expected one called data"
    else:
        return
    raise UsageError(f"{problem}; correct it", code=Refusal.BAD_OPTION)


@lru_cache(maxsize=8)
def _compiled(pipeline: Pipeline, steps: int, guided: bool, empty: bool, tile: int | None) -> Any:
    def draw(
        params: Params,
        prompts: Prompts,
        noise: Array,
        keys: Array,
        negatives: Prompts,
        guidance: Any,
        scales: dict[str, Any],
    ) -> Array:
        with numpy_promotion(), adapted(scales):
            told = pipeline.embed(params, *prompts)
            untold = None
            if guided:
                one = pipeline.embed(params, *negatives)
                untold = jax.tree.map(lambda x: jnp.zeros_like(x) if empty else x, one)
                untold = jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), untold, told)
            latents = denoise(
                pipeline,
                params,
                noise,
                told,
                untold,
                keys=keys,
                steps=steps,
                guidance=guidance,
            )
        return pipeline.decode(params, latents, tile)

    return jax.jit(draw)
