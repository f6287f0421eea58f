"""Adapters in training and as files: LoRA factors by module path."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.naming import flax_path
from prolora_jax.nets.unet.config import UNetConfig


class TrainedFactors(NamedTuple):
    """One module's update `up @ down`, in torch orientation; the scale is in the factors.

    Attributes:
        down: `(rank, in)`.
        up: `(out, rank)`.
    """

    down: Any
    up: Any


def new_factors(
    config: UNetConfig, rank: int, seed: int, kinds: Iterable[str] = ("attn",)
) -> dict[str, TrainedFactors]:
    """Factors of a new adapter: `down` normal with variance 1 / in, `up` zero.

    Args:
        config: the net it is for.
        rank: of every module.
        seed: of NumPy's generator.
        kinds: which modules get one.

    Returns:
        Factors by torch path, `unet.down_blocks.0.attentions.0...attn1.to_q`.
    """
    rng = np.random.default_rng(seed)
    spec = spec_from_config(config.tensors, name="laboratory")
    made = {}
    for path, module in spec.modules.items():
        if any(module.kind_is(kind) for kind in kinds):
            out, width = module.matrix_shape
            down = rng.standard_normal((rank, width)) / np.sqrt(width)
            made[path] = TrainedFactors(
                jnp.asarray(down, jnp.float32), jnp.zeros((out, rank), jnp.float32)
            )
    return made


def merged(
    params: Mapping[str, Any], factors: Mapping[str, TrainedFactors], scale: float = 1.0
) -> dict[str, Any]:
    """Parameters with the adapter's updates added to their kernels; the ones given stay."""
    tree = dict(params)
    for path, (down, up) in factors.items():
        *levels, last = flax_path(path).split("/")[1:]
        level = tree
        for name in levels:
            level[name] = dict(level[name])
            level = level[name]
        kernel = level[last]["kernel"]  # (in, out)
        update = scale * jnp.matmul(up, down, precision=jax.lax.Precision.HIGHEST).T
        level[last] = dict(level[last]) | {"kernel": kernel + update.astype(kernel.dtype)}
    return tree


def as_adapter(factors: Mapping[str, TrainedFactors]) -> Adapter:
    """The record that `save_adapter` writes."""
    return Adapter(
        tuple(
            LoraModule(path, np.asarray(down), np.asarray(up))
            for path, (down, up) in factors.items()
        ),
        "diffusers",
    )


def factors_of(adapter: Adapter) -> dict[str, TrainedFactors]:
    """Factors of a loaded adapter of linear layers, its scales multiplied in."""
    return {
        module.path: TrainedFactors(
            module.down.astype(np.float32), (module.scale * module.up).astype(np.float32)
        )
        for module in adapter.modules
    }


def total_norm(factors: Mapping[str, TrainedFactors]) -> float:
    """Frobenius norm of all updates together."""
    return float(np.sqrt(sum(m.norm**2 for m in as_adapter(factors).modules)))
