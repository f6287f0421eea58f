"""UNets from disk and back, and new ones; without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.architectures.flax_trees import flax_table, nested, unet_from_flax, unet_to_flax
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import located
from prolora_jax.io.base_models.unet_files import (
    Container,
    read_unet_config,
    read_unet_tensors,
    write_unet,
)
from prolora_jax.nets.unet.config import UNetConfig, as_diffusers, from_diffusers
from prolora_jax.nets.unet.unet import UNet

Params = dict[str, Any]


def load_unet(
    path: str | Path, *, dtype: Any = jnp.float32, config: Mapping[str, Any] | None = None
) -> tuple[UNet, Params]:
    """A UNet and its parameters: `unet.apply({"params": params}, sample, timesteps, text)`.

    Args:
        path: whatever `load_base_model` takes: a diffusers folder, a single file in diffusers or
            LDM naming, Flax msgpack, an orbax folder, or a hub id.
        dtype: what parameters are cast to, and what the net computes in.
        config: diffusers' configuration, where no `config.json` stands beside the weights.

    Returns:
        The module, and its parameters as nested dictionaries of JAX arrays.

    Raises:
        UsageError: there is nothing at `path`.
        BaseModelError: what is there is no UNet of a known kind, is damaged, or its tensors are
            not those of its configuration.
    """
    origin, place = str(path), located(path)
    if config is None:
        raw, file = read_unet_config(place)
        parsed = from_diffusers(raw, origin=str(file))
    else:
        parsed = from_diffusers(config, origin="config")
    tensors = read_unet_tensors(place)
    _require_all(tensors, parsed, origin)
    # Copied in its final layout first: a device takes no strided views.
    params = jax.tree.map(
        lambda a: jnp.asarray(np.ascontiguousarray(a), dtype), unet_to_flax(tensors)
    )
    return UNet(parsed, dtype=dtype, param_dtype=dtype), params


def save_unet(
    folder: str | Path,
    config: UNetConfig,
    params: Mapping[str, Any],
    *,
    container: Container = "safetensors",
) -> None:
    """Write a UNet as diffusers reads it: `config.json`, and its parameters beside it.

    Args:
        folder: where to; no UNet may be there yet.
        config: what the parameters are of.
        params: a Flax tree of NumPy or JAX arrays.
        container: the form of the parameters. What is in `safetensors` torch reads, what is in
            `msgpack` diffusers' Flax classes do.

    Raises:
        BaseModelError: the parameters are not those of `config`.
        OutputError: they cannot be written.
    """
    tensors = unet_from_flax(params)
    _require_all(tensors, config, "params")
    write_unet(Path(folder), as_diffusers(config), tensors, container)


def initial_params(config: UNetConfig, *, seed: int = 0, dtype: Any = jnp.float32) -> Params:
    """Parameters of a new UNet, drawn on the host: nothing is compiled, as `unet.init` would.

    Kernels are normal with variance 1 / fan-in, biases zero, scales of norms one. The last
    convolution is zero: a new net predicts nothing, whatever it is shown.

    Args:
        config: the net.
        seed: of NumPy's generator.
        dtype: of the parameters.

    Returns:
        Nested dictionaries of JAX arrays.
    """
    rng = np.random.default_rng(seed)
    params = {}
    for place, shape in flax_table(unet_table(config.tensors)).items():
        leaf = place.rpartition("/")[2]
        if leaf == "kernel" and place != "conv_out/kernel":
            fan_in = np.prod(shape[:-1])
            array = rng.standard_normal(shape, np.float32) / np.sqrt(fan_in, dtype=np.float32)
        else:
            array = np.full(shape, leaf == "scale", np.float32)
        params[place] = jnp.asarray(array, dtype)
    return nested(params)


def _require_all(tensors: Mapping[str, np.ndarray], config: UNetConfig, origin: str) -> None:
    """Refuse tensors that are not, one for one, those of the configuration."""
    want = unet_table(config.tensors)
    for keys, found, expected in (
        (want.keys() - tensors.keys(), "no tensor", "one"),
        (tensors.keys() - want.keys(), "tensor", "none of this name"),
    ):
        if keys:
            raise BaseModelError(
                f"{origin}: found {found} {min(keys)} ({len(keys)} such); expected {expected}; the "
                f"weights are not those of the configuration",
                code=Refusal.SHAPE_MISMATCH,
            )
    for key, tensor in tensors.items():
        if tensor.shape != want[key]:
            raise BaseModelError(
                f"{origin}: found {key} of shape {tensor.shape}; expected {want[key]}; the weights "
                f"are not those of the configuration",
                code=Refusal.SHAPE_MISMATCH,
            )
