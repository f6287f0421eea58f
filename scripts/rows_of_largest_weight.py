"""What a weight that is spread by its rows takes on each of 8 devices: compiled, a small one run.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 NPROC=16 JAX_PLATFORMS=cpu \
        python scripts/rows_of_largest_weight.py

The shapes are the head and the down projection of an 8B model, and the largest weights of FLUX.2
and FLUX.1 dev as they are fused. Their program is compiled without a weight: bytes of each device's
arguments, results and temporaries, and of what the devices send each other. A weight with an eighth
of the columns of a down projection is decomposed, and compared with NumPy's SVD.
"""

import json
import re
import time

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prolora_jax.method.decomposition_on_devices import decompose_rows, rows_program

SHAPES = {
    "lm_head": (128256, 4096),
    "down_proj": (14336, 4096),
    "to_qkv_mlp_proj": (55296, 6144),
    "linear1": (21504, 3072),
}
SMALL = (14336, 512)
_SUMS = re.compile(r"= (f\d+)\[([\d,]*)\]\S* all-reduce")


def compiled(shape: tuple[int, int], mesh: Mesh) -> dict[str, float]:
    """GiB on each device, and GiB that each sends, of the program for a weight in float32.

    Args:
        shape: `(long, short)`.
        mesh: one axis.
    """
    along = NamedSharding(mesh, PartitionSpec("devices"))
    weight = jax.ShapeDtypeStruct(shape, np.float32, sharding=along)
    program = rows_program.lower(weight, mesh=mesh).compile()
    sizes, text = program.memory_analysis(), program.as_text()
    assert sizes is not None
    assert text is not None
    sent = sum(
        int(kind[1:]) // 8 * int(np.prod([*map(int, sides.split(","))]))
        for kind, sides in _SUMS.findall(text)
    )
    found = {
        "arguments": sizes.argument_size_in_bytes,
        "results": sizes.output_size_in_bytes,
        "temporary": sizes.temp_size_in_bytes,
        "sent": sent,
    }
    return {name: round(size / 2**30, 3) for name, size in found.items()}


def run(shape: tuple[int, int], mesh: Mesh) -> dict[str, float]:
    """Seconds of a decomposition, and the largest error of its singular values over the first.

    Args:
        shape: `(long, short)`.
        mesh: one axis.
    """
    weight = np.random.default_rng(0).standard_normal(shape, np.float32)
    jax.block_until_ready(decompose_rows(weight, mesh))  # compiles
    started = time.perf_counter()
    found = jax.block_until_ready(decompose_rows(weight, mesh))
    took = time.perf_counter() - started
    wanted = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    error = np.abs(np.asarray(found.s) - wanted).max() / wanted[0]
    return {"seconds": round(took, 2), "error": float(f"{error:.1e}")}


def main() -> None:
    """Print one line of JSON for each shape."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    with jax.enable_x64(True):
        for name, shape in SHAPES.items():
            print(json.dumps({"weight": name, "shape": shape, **compiled(shape, mesh)}))
        print(json.dumps({"weight": "small", "shape": SMALL, **run(SMALL, mesh)}))


if __name__ == "__main__":
    main()
