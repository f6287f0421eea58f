"""The student on a real base model: its UNet with LoRA factors as an argument of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.flax_keys import LORA
from prolora_jax.architectures.spec import ModuleSpec
from prolora_jax.nets.adapters.adapted import adapted
from prolora_jax.nets.adapters.tree import grafted, kernels, leaf_at
from prolora_jax.nets.pipelines.answers import filled_batches, predicted
from prolora_jax.nets.pipelines.devices import devices_of, each_a_share
from prolora_jax.nets.pipelines.pipeline import Pipeline, Told
from prolora_jax.nets.unet.loading import Params
from prolora_jax.refine.fitting import factors_from_zero
from prolora_jax.refine.rows import NoisyRows

NAME = "student"
TAUGHT = ("unet.", "lm.")
"""Components that students learn; text encoders stay copies."""


@dataclass(frozen=True)
class StudentNet:
    """A function `(unet, told, factors, noisy, times, places) -> prediction`, to be traced.

    Two that are equal share one program: adapters of one pair, with the same modules and ranks.

    Attributes:
        pipeline: of the target.
        kernels: path, place and shape of the kernel of each module that is taught.
        last: the last time of its training; rows have times from 0 to 1.
    """

    pipeline: Pipeline
    kernels: tuple[tuple[str, tuple[Any, ...], tuple[int, ...]], ...]
    last: float

    def __call__(
        self, unet: Params, told: Told, factors: Any, noisy: Any, times: Any, places: Any
    ) -> jax.Array:
        """The UNet's prediction with these factors beside its kernels."""
        new = {}
        for path, (*layer, _), shape in self.kernels:
            down, up = factors[path]
            sides = {"down": _down_kernel(down, shape), "up": jnp.transpose(up)}
            for side, kernel in sides.items():
                new[*layer, LORA + NAME, side, "kernel"] = kernel
        texts = jax.tree.map(lambda table: table[places], told)
        with adapted({NAME: 1.0}):
            return predicted(self.pipeline, grafted(unet, new), noisy, times * self.last, texts)


def student_net(
    pipeline: Pipeline,
    params: Params,
    told: Told,
    factors: Mapping[str, Any],
    last: float,
    *,
    remat: bool = False,
) -> jax.tree_util.Partial:
    """The target's net as `fitting.fit` takes it.

    Args:
        pipeline: of the target.
        params: of all its components.
        told: what its UNet is told of each prompt, on the device; rows name theirs by its place.
        factors: of the modules that are taught, by path.
        last: the last time of its training.
        remat: whether activations inside resnets and transformer blocks are computed again on the
            way back. Of the whole net that would save nothing: at its end all are there at once.

    Returns:
        `predict(factors, noisy, times, places)`.
    """
    places = kernels({"unet": params["unet"]})
    taught = tuple(
        (path, tuple(places[path][1:]), tuple(leaf_at(params, places[path]).shape))
        for path in sorted(factors)
    )
    net = StudentNet(replace(pipeline, unet=pipeline.unet.clone(remat=remat)), taught, last)
    return jax.tree_util.Partial(net, params["unet"], told)


def answers_of(
    predict: Any, factors: Any, rows: NoisyRows, at_once: int, mesh: Mesh | None = None
) -> Float[np.ndarray, "n channels height width"]:
    """What a student says of rows.

    Args:
        predict: of `student_net`.
        factors: of the student.
        rows: what it is asked.
        at_once: rows in one batch, for each device.
        mesh: devices that rows are spread over; all have what `predict` needs.
    """
    found = []
    for begin, some in filled_batches(len(rows.noisy), at_once * devices_of(mesh)):
        part = rows.noisy[some], rows.times[some], rows.conditioning[some]
        found.append(
            np.asarray(_ask(predict, factors, each_a_share(part, mesh)))[: len(rows.noisy) - begin]
        )
    return np.concatenate(found)


def factors_of(adapter: Adapter) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Factors that are taught, `(rank, in)` and `(out, rank)`, float32, the scale in the second."""
    return {
        module.path: (
            module.down.reshape(module.down.shape[0], -1).astype(np.float32),
            module.up.reshape(module.up.shape[:2]).astype(np.float32) * np.float32(module.scale),
        )
        for module in adapter.modules
        if module.path.startswith(TAUGHT)
    }


def with_factors(
    adapter: Adapter,
    factors: Mapping[str, tuple[Any, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
) -> tuple[LoraModule, ...]:
    """An adapter's modules with what the student has learned; those of text encoders stay.

    Args:
        adapter: that was copied.
        factors: of a fit.
        shapes: of each module's weight, `(out, in[, kh, kw])`.
        dtype: of the modules that were not copied; the others keep theirs. A module whose numbers
            its dtype does not hold is float32.

    Returns:
        Modules of scale 1, in the order of their paths. With one rank everywhere alpha says so;
        with several there is none, which is read alike everywhere (docs/formats.md).
    """
    before = {module.path: module for module in adapter.modules}
    ranks = {len(pair[0]) for pair in factors.values()}
    said = len(ranks) == 1 and all(m.alpha is not None for m in before.values())
    taught = []
    for path, pair in factors.items():
        down, up = (np.asarray(array, np.float32) for array in pair)
        window = shapes[path][1:]
        ones = (1,) * (len(window) - 1)
        kind = before[path].up.dtype if path in before else dtype
        sides = down.reshape(-1, *window), up.reshape(*up.shape, *ones)
        cast = [np.ascontiguousarray(side).astype(kind) for side in sides]
        whole = all(np.isfinite(side.astype(np.float32)).all() for side in cast)
        alpha = float(down.shape[0]) if said else None
        first, second = cast if whole else sides
        taught.append(LoraModule(path, first, second, alpha))
    kept = [module for module in adapter.modules if not module.path.startswith(TAUGHT)]
    return tuple(sorted([*kept, *taught], key=lambda module: module.path))


def start_of(
    copied: Mapping[str, Any],
    from_zero: Mapping[str, int],
    modules: Mapping[str, ModuleSpec],
    seed: int,
) -> dict[str, Any]:
    """Factors before the first step: the copy's, and new ones where nothing can be copied.

    Args:
        copied: of `factors_of`.
        from_zero: rank of the modules that cannot be copied, by path.
        modules: of the target.
        seed: of the recipe.
    """
    start = dict(copied)
    for place, (path, rank) in enumerate(sorted(from_zero.items())):
        start |= factors_from_zero({path: modules[path].matrix_shape}, rank, seed + place)
    return start


@jax.jit
def _ask(predict: Any, factors: Any, part: tuple[Any, Any, Any]) -> Any:
    return predict(factors, *part)


def _down_kernel(down: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`(rank, in * kh * kw)` as a kernel, for a layer whose own is `(in, out)` or HWIO."""
    if len(shape) == 2:
        return jnp.transpose(down)
    height, width, inner, _ = shape
    return down.reshape(-1, inner, height, width).transpose(2, 3, 1, 0)
