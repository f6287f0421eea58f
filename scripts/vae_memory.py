"""Memory that a published VAE needs for one picture, in one piece and in tiles.

    python scripts/vae_memory.py [--latency]

The VAE of Stable Diffusion and SDXL (83.7 million parameters), float32, compiled for this machine
and not run: what XLA sets aside for temporaries (`memory_analysis`). `--latency` leaves the order
of operations to XLA, which then takes more memory on a CPU. Needs the extra `test`. What came out
is on docs/benchmarks.md.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import unets

from prolora_jax.nets.vae.config import vae_config
from prolora_jax.nets.vae.tiles import decoded, encoded
from prolora_jax.nets.vae.vae import Vae

SIZES = ((512, None), (1024, None), (1024, 512), (1024, 256), (2048, 512))
"""Height and width of pictures, and of tiles; None for one piece."""
LEAST = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def main() -> None:
    """Compile each, and print a line of a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--latency", action="store_true", help="the order of operations is XLA's")
    how: dict[str, Any] = {} if parser.parse_args().latency else LEAST
    vae = Vae(vae_config(unets.PUBLISHED_VAE))
    config = vae.config
    sample = jax.ShapeDtypeStruct((1, config.in_channels, 8, 8), jnp.float32)
    made: Any = jax.eval_shape(vae.init, jax.random.key(0), sample)
    print("| picture | tiles | decoding, GiB | encoding, GiB | compiled in, s |")
    print("|---|---|---|---|---|")
    for pixels, tile in SIZES:
        side, start = pixels // config.pixels_per_latent, time.monotonic()
        needed = []
        for run, shape in (
            (decoded, (1, config.latent_channels, side, side)),
            (encoded, (1, config.in_channels, pixels, pixels)),
        ):
            given = jax.ShapeDtypeStruct(shape, jnp.float32)
            program = jax.jit(lambda p, x, r=run, t=tile: r(vae, p, x, t), compiler_options=how)
            compiled: Any = program.lower(made["params"], given).compile()
            needed.append(f"{compiled.memory_analysis().temp_size_in_bytes / 2**30:.2f}")
        told = " | ".join((str(pixels), str(tile or "none"), *needed))
        print(f"| {told} | {time.monotonic() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
