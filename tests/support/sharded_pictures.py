"""Run by test_sharded_pictures.py in a process of its own, with 8 virtual CPU devices.

Draws with a tiny pipeline on one device and over meshes, and takes gradients by an adapter's
factors on one device and, with remat, over a mesh; prints what was found as JSON.
"""

import json
import re
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import builders
import jax
import jax.numpy as jnp
import numpy as np
import unets
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny_pipelines import PROMPTS, SIZE

import prolora_jax as pl
from prolora_jax.adapters.formats.flax_keys import LORA
from prolora_jax.nets.adapters.adapted import adapted
from prolora_jax.nets.adapters.lora import attach
from prolora_jax.nets.adapters.tree import grafted, spec_of, walk
from prolora_jax.nets.pipelines import devices, generation
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline
from prolora_jax.nets.unet.loading import load_unet

SEEDS = [2, 3, 5, 7, 11]
SCALE = 0.04  # of factors whose numbers are about 1
ROWS, SIDE = 16, 16  # of the latents that gradients are taken for
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
# In this order CPU programs use what remat has saved; in the usual one, made for many threads,
# everything is computed again right away and kept.
THRIFTY = unets.QUICK | {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


PROGRAMS: dict[Any, Any] = {}


class Drawn(NamedTuple):
    """Pictures, the one program that drew all their batches, and the parameters it was given."""

    pictures: np.ndarray
    program: Any
    params: Any


def drawn(pipeline: Pipeline, params: Any, mesh: Mesh | None = None, **more: Any) -> Drawn:
    """`generate`, watched: a second batch that needs another program is an error."""
    key, given, jit = (pipeline, mesh), [], jax.jit

    def watched(draw: Callable) -> Callable:
        def run(*arguments: Any) -> Any:
            given.append(arguments[0])
            if key not in PROGRAMS:
                lowered = jit(draw).lower(*arguments)
                PROGRAMS[key] = lowered.compile(compiler_options=unets.QUICK)
            return PROGRAMS[key](*arguments)

        return run

    options: Any = {"scales": {"style": SCALE}} | more
    generation._compiled.cache_clear()
    with patch.object(jax, "jit", watched):
        pictures = generation.generate(
            pipeline,
            params,
            PROMPTS,
            SEEDS,
            size=(SIZE, SIZE),
            mesh=mesh,
            at_once=1,
            **options,
        )
    return Drawn(pictures, PROGRAMS[key], given[-1])


def buffers(params: Any) -> list[Any]:
    """Where every part of every array is in memory."""
    return [
        shard.data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves(params)
        for shard in leaf.addressable_shards
    ]


def looked_into(program: Any) -> dict[str, Any]:
    """What the compiled text of a drawing program says of one device's share of the work."""
    text = program.as_text()
    parts = dict(re.findall(r"^(?:ENTRY )?%([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    called = {
        name: {other for other in re.findall(r"%([\w.-]+)", body) if other in parts}
        for name, body in parts.items()
    }
    inside, ahead = set(), set(re.findall(r"body=%([\w.-]+)", text))
    while ahead:
        inside |= ahead
        ahead = set().union(*(called[name] for name in ahead)) - inside
    found: dict[str, Any] = {"in_loop": [], "outside": []}
    for name, body in parts.items():
        for shapes, kind in re.findall(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", body):
            sizes = re.findall(r"\[([\d,]*)\]", shapes)
            numbers = sum(prod(map(int, size.split(","))) for size in sizes)
            found["in_loop" if name in inside else "outside"].append((kind, numbers))
    looped = "".join(parts[name] for name in inside)
    rows = re.findall(r"= \w+\[(\d+),.* convolution\(.*/UNet/", looped)
    found["unet_rows"] = sorted({int(number) for number in rows})
    found["over"] = [*program.output_shardings.spec]
    return found


def distance(one: Any, other: Any) -> float:
    """Of trees of numbers, as a share of the norm of the second."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    ]
    return float(
        np.sqrt(sum(np.square(a - b).sum() for a, b in pairs))
        / np.sqrt(sum(np.square(b).sum() for _, b in pairs))
    )


def random_adapter(params: Any, where: str = "") -> pl.Adapter:
    """For every layer in whose path there is `where`."""
    spec = spec_of(params)
    modules = (builders.random_module(path, spec) for path in spec.modules if where in path)
    return pl.Adapter(tuple(modules), "diffusers")


def pictures(folder: Path, meshes: dict[str, Mesh]) -> dict[str, Any]:
    """Of two samplers on one device and over meshes, and in bfloat16."""
    pipeline, plain = load_pipeline(folder)
    style = {"style": random_adapter(plain)}
    params = attach(plain, style)
    samplers: dict[str, tuple[Pipeline, Any]] = {
        "euler": (pipeline, {"steps": 3, "guidance": 4.0}),
        "lcm": (load_pipeline(folder, sampler="lcm")[0], {"steps": 4, "guidance": 1}),
    }
    found: dict[str, Any] = {}
    ones = {name: drawn(made, params, **given) for name, (made, given) in samplers.items()}
    for (name, (made, given)), mesh in zip(samplers.items(), meshes.values(), strict=True):
        placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        with jax.set_mesh(mesh):
            many = drawn(made, placed, mesh, **given)
        found[name] = looked_into(many.program) | {
            "mesh": dict(mesh.shape),
            "error": float(np.abs(many.pictures - ones[name].pictures).max()),
            "copied": buffers(many.params) != buffers(placed),
        }
    _, given = samplers["euler"]
    one = ones["euler"].pictures

    def apart(pipeline: Pipeline, params: Any, **more: Any) -> float:
        return float(np.abs(drawn(pipeline, params, **given | more).pictures - one).mean())

    found["without adapter"] = apart(pipeline, params, scales={"style": 0.0})
    half, low = load_pipeline(folder, dtype=jnp.bfloat16)
    low, seen, inner = attach(low, style), [], generation.denoise
    with patch.object(
        generation, "denoise", lambda *a, **more: seen.append(inner(*a, **more)) or seen[-1]
    ):
        moved = apart(half, low, mesh=meshes["data"])
    found["bfloat16"] = {
        "distance": moved,
        "latents": [str(latents.dtype) for latents in seen],
        "nets": [str(jnp.dtype(net.dtype)) for net in (half.unet, *half.text_encoders.values())],
        "parameters": {
            part: sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)})
            for part, tree in low.items()
        },
    }
    return found


def kept_where_they_are(mesh: Mesh) -> dict[str, Any]:
    """What `generate` does with parameters that are split over a mesh, and with those of one."""
    split = jax.device_put(jnp.ones((4, 6)), NamedSharding(mesh, PartitionSpec(None, "model")))
    params = {"split": split, "one": jnp.ones(3), "host": np.ones(3, np.float32)}
    placed = devices.on_all(params, mesh)
    return {
        "same": buffers(placed["split"]) == buffers(split),
        "specs": {name: [*leaf.sharding.spec] for name, leaf in placed.items()},
        "devices": {name: len(leaf.sharding.device_set) for name, leaf in placed.items()},
    }


def gradients(folder: Path, mesh: Mesh) -> dict[str, Any]:
    """Of a loss by an adapter's factors alone: on one device, and with remat over a mesh."""
    net, params = load_unet(folder)
    style = {"style": random_adapter(params, ".attn")}
    *given, added = unets.inputs(unets.SMALLEST, batch=ROWS, size=SIDE)
    noise = np.random.default_rng(1).standard_normal(given[0].shape, np.float32)
    batch = (*given, added, noise)
    spread, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
    found, exact = {}, None
    for dtype in (jnp.float32, jnp.bfloat16):
        base = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        tree = walk(attach(base, style))
        adapter = {place: leaf for place, leaf in tree if LORA in "/".join(place)}

        def program(remat: bool, *given: Any, dtype: Any = dtype) -> Any:
            def loss(factors: Any, kernels: Any, *given: Any) -> jax.Array:
                *told, noise = given
                params = {"params": grafted(kernels, factors)}
                with adapted({"style": SCALE}):
                    made: Any = net.clone(remat=remat, dtype=dtype).apply(params, *told)
                return jnp.square(made.astype(jnp.float32) - noise).mean()

            return jax.jit(jax.grad(loss)).lower(*given).compile(compiler_options=THRIFTY)

        one = (adapter, base, *batch)
        many = (*jax.device_put(one[:2], everywhere), *jax.device_put(batch, spread))
        kept, again = program(False, *one), program(True, *many)
        want, got = kept(*one), again(*many)
        exact = exact or want
        found[str(jnp.dtype(dtype))] = {
            "error": distance(got, want),
            "rounding": distance(want, exact),  # of bfloat16 itself
            "least": min(float(jnp.abs(leaf).max()) for leaf in want.values()),
            "collectives": sorted(
                set(re.findall(rf" ({COLLECTIVES})(?:-start)?\(", again.as_text()))
            ),
        }
        if dtype == jnp.float32:
            memory = {"kept": program(False, *many), "again": again}
            found["bytes"] = {
                name: made.memory_analysis().temp_size_in_bytes for name, made in memory.items()
            }
    return found


def main() -> None:
    """Everything, for a pipeline and a UNet in the folders that are named."""
    pipeline, unet = map(Path, sys.argv[1:])
    devices = np.array(jax.devices())
    meshes = {
        "data": jax.make_mesh((8,), ("data",)),  # whose axes are explicit
        "both": Mesh(devices.reshape(4, 2), ("data", "model")),
    }
    found = {"devices": len(devices)} | pictures(pipeline, meshes)
    found["kept"] = kept_where_they_are(meshes["both"])
    print(json.dumps(found | {"gradients": gradients(unet, Mesh(devices, ("data",)))}))


if __name__ == "__main__":
    main()
