"""One prediction of a UNet at full size: ours in Flax, torch's, and diffusers' own Flax class.

    python scripts/time_unet.py [--base sd15] [--rounds 3]

Random weights, float32, two rows as guidance needs them, latents of 64 x 64; all three in one
process, in turn. Needs the extra `stock`. What came out is on docs/benchmarks.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import builders
import unets
from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel

from prolora_jax.architectures.flax_trees import unet_to_flax
from prolora_jax.nets.unet.config import from_diffusers
from prolora_jax.nets.unet.unet import UNet

BASES = ("sd15", "sd21", "bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny")
"""Those that diffusers' Flax class can express, too."""
LATENTS, TEXT = 64, 77


def runners(config: dict[str, Any], latents: int = LATENTS) -> dict[str, Callable[[], np.ndarray]]:
    """A function for each net that predicts and waits; all have the same weights and inputs."""
    given = unets.inputs(config, size=latents)[:2]
    shape = (len(given[0]), TEXT, config["cross_attention_dim"])
    given = (*given, np.random.default_rng(1).standard_normal(shape, np.float32))
    torch_net = builders.build_unet(config)
    tensors = {key: tensor.numpy() for key, tensor in torch_net.state_dict().items()}
    params = jax.tree.map(lambda a: jnp.asarray(np.ascontiguousarray(a)), unet_to_flax(tensors))
    net = UNet(from_diffusers(config))
    stock: Any = FlaxUNet2DConditionModel(**config)
    ours = jax.jit(lambda params, *given: net.apply({"params": params}, *given))
    flax = jax.jit(lambda params, *given: stock.apply({"params": params}, *given).sample)
    return {
        "torch": lambda: unets.predicted_by_torch(torch_net, (*given, None)),
        "ours": lambda: np.asarray(ours(params, *given)),
        "diffusers' Flax": lambda: np.asarray(flax(params, *given)),
    }


def main() -> None:
    """Predict with each, say how far each is from torch, then take the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=BASES, default="sd15")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    runs = runners(unets.PUBLISHED[options.base])
    found = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        apart = np.abs(found[name] - found["torch"]).max() / np.abs(found["torch"]).max()
        print(f"{name}: {statistics.median(times):.2f} s, {apart:.1e} from torch")


if __name__ == "__main__":
    main()
