"""What the linear modules of two nets see when both are shown the same pictures."""

from collections.abc import Mapping
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.naming import flax_path
from prolora_jax.evaluation.laboratory.data import CLASSES, text_table
from prolora_jax.evaluation.laboratory.diffusion import noised, sample
from prolora_jax.evaluation.laboratory.distillation import STRIDES
from prolora_jax.evaluation.laboratory.nets import Params
from prolora_jax.evaluation.laboratory.workshop import Workshop
from prolora_jax.nets.unet.config import UNetConfig
from prolora_jax.nets.unet.unet import UNet

Activations = Mapping[str, np.ndarray]
"""Inputs `(rows, in)` in float64 by module path."""

STEPS = 20


@lru_cache(maxsize=4)
def recorded_inputs(
    workshop: Workshop, source: str, target: str, of: str, count: int, seed: int = 5
) -> tuple[Activations, Activations]:
    """Inputs of every linear module of two base models; no data, only what they make themselves.

    Args:
        workshop: where both were trained.
        source: name of one base model.
        target: name of the other.
        of: `noise`: pure noise at all times; `samples`: pictures that the target makes, with noise
            of all levels.
        count: pictures shown.
        seed: of pictures, times and noise.

    Returns:
        The source's inputs and the target's, row by row of the same picture and place.
    """
    rng = np.random.default_rng(seed)
    times = rng.random(count, np.float32)
    words = rng.integers(CLASSES, size=count).astype(np.int32)
    noise = rng.standard_normal((count, 4, 4, 4), np.float32)
    noisy = noise
    if of == "samples":
        hastened = workshop.recipe.base(target).kind == "hasten"
        steps = STRIDES if hastened else STEPS
        made = sample(workshop.predict(target), words, steps=steps, seed=seed)
        noisy = noised(made, noise, times, words).noisy
    first, second = (
        _inputs(workshop.config(name), workshop.params(name), noisy, times, words)
        for name in (source, target)
    )
    return first, second


def _inputs(
    config: UNetConfig, params: Params, noisy: np.ndarray, times: np.ndarray, words: np.ndarray
) -> Activations:
    seen: dict[str, np.ndarray] = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            array = np.asarray(args[0], np.float64)
            seen["/".join(("unet", *context.module.path))] = array.reshape(-1, array.shape[-1])
        return call(*args, **kwargs)

    table = jnp.asarray(text_table())
    with nn.intercept_methods(record):
        UNet(config).apply({"params": params}, noisy, 1000 * times, table[words])
    modules = spec_from_config(config.tensors, name="laboratory").modules
    return {path: seen[place] for path in modules if (place := flax_path(path)) in seen}
