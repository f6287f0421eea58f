"""Nets that use the adapters beside their kernels, by linen's interceptors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from prolora_jax.adapters.formats.flax_keys import LORA
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.adapters.lora import Scale


@contextmanager
def adapted(scales: Mapping[str, Scale]) -> Iterator[None]:
    """Within this context every linen net uses the adapters that `attach` put into its parameters.

    A layer `y = W x + b` gives `y + sum over adapters of scale * up(down x)`. Scales may be traced:
    a compiled function that takes them as an argument switches adapters and mixes them without
    being compiled again. It must enter the context itself, as a function compiled before is not
    looked into:

        @jax.jit
        def predict(params, scales, *given):
            with adapted(scales):
                return net.apply({"params": params}, *given)

    Any linen net will do, of ours or of others: UNets, text encoders, MaxDiffusion's.

    Args:
        scales: by the names of the adapters that are to be used; others are not.

    Yields:
        Nothing.

    Raises:
        UsageError: no layer that ran has an adapter of one of the names, or a layer that has is
            of a kind that takes none.
    """
    met = dict.fromkeys(scales, 0)

    def with_updates(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext):
        result, layer = call(*args, **kwargs), context.module
        if context.method_name != "__call__":
            return result
        for name, scale in scales.items():
            factors = layer.get_variable("params", LORA + name)
            if factors is not None:
                met[name] += 1
                result += jnp.asarray(scale, result.dtype) * _update(layer, factors, *args)
        return result

    with nn.intercept_methods(with_updates):
        yield
    unused = [name for name, times in met.items() if not times]
    if unused:
        raise UsageError(
            f"adapter {unused[0]!r}: no layer that ran has one of this name; expected parameters "
            f"with it (attach), and a function that is compiled inside the context or enters it "
            f"itself",
            code=Refusal.BAD_NAME,
        )


def _update(layer: nn.Module, factors: Mapping[str, Any], inputs: jax.Array) -> jax.Array:
    """`up(down x)` of one layer, computed as the layer itself computes."""
    if not isinstance(layer, nn.Dense | nn.Conv):
        raise UsageError(
            f"{'/'.join(layer.path)}: found an adapter at a {type(layer).__name__}; expected a "
            f"linear layer or a convolution",
            code=Refusal.BAD_OPTION,
        )
    down, up = factors["down"]["kernel"], factors["up"]["kernel"]
    if isinstance(layer, nn.Conv) and down.ndim == 2:  # MaxDiffusion's form of a 1x1 window
        down = down.reshape(1, 1, *down.shape)
    # Strides, padding, dtype and precision are the layer's.
    lower = layer.clone(parent=None, name=None, features=down.shape[-1], use_bias=False)
    low: Any = lower.apply({"params": {"kernel": down}}, inputs)
    return jnp.matmul(low, up.reshape(up.shape[-2:]).astype(low.dtype), precision=layer.precision)
