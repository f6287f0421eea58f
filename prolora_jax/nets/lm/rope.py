"""Rotary positions (arXiv 2104.09864): angles of pairs of channels, and their scaling."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prolora_jax.errors import BaseModelError, Refusal


class Rope(NamedTuple):
    """How positions turn channels.

    Attributes:
        theta: base of the frequencies.
        factor: positions are divided by this (`linear`), or slow frequencies are (`llama3`).
        low: of `llama3`: turns over `context` tokens below which a frequency is slow.
        high: of `llama3`: turns from which it is fast.
        context: of `llama3`: tokens that the model was first trained on; 0 for `linear`.
    """

    theta: float = 10_000.0
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    context: int = 0


def rope_from(raw: Mapping[str, Any], origin: str) -> Rope:
    """What a configuration of transformers says of positions, in either generation's words.

    Args:
        raw: content of a `config.json`.
        origin: the file, for messages.

    Raises:
        BaseModelError: positions are scaled in a way that is not computed here.
    """
    told = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = told.get("rope_type", told.get("type", "default"))
    theta = float(told.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    whole = told.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) == 1.0
    if not whole or kind not in {"default", "linear", "llama3"}:
        found = f"rope_type {kind!r}" if whole else "a rotation of some channels alone"
        raise BaseModelError(
            f"{origin}: found {found}; expected default, linear or llama3 over all channels; "
            f"migrate without running the model (every method but refine does)",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
    if kind == "default":
        return Rope(theta)
    factor = float(told["factor"])
    if kind == "linear":
        return Rope(theta, factor)
    return Rope(
        theta,
        factor,
        float(told["low_freq_factor"]),
        float(told["high_freq_factor"]),
        int(told["original_max_position_embeddings"]),
    )


def frequencies(rope: Rope, width: int) -> np.ndarray:
    """Radians a token for each pair of channels, `(width / 2,)` in float64."""
    plain = rope.theta ** -(np.arange(0, width, 2) / width)
    if not rope.context:
        return plain / rope.factor
    turns = rope.context * plain / (2 * math.pi)
    share = np.clip((turns - rope.low) / (rope.high - rope.low), 0.0, 1.0)
    return (1 - share) * plain / rope.factor + share * plain


def rotated(
    x: Float[Array, "batch length heads width"],
    positions: Int[Array, "batch length"],
    rope: Rope,
) -> Float[Array, "batch length heads width"]:
    """Queries or keys turned by their positions; the halves of a head are the pairs."""
    speed = jnp.asarray(frequencies(rope, x.shape[-1]), jnp.float32)
    angles = positions[..., None, None].astype(jnp.float32) * speed
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
