"""What `prolora refine` needs at real size: memory and arithmetic of each phase, and its time.

    python scripts/refine_costs.py sdxl ssd-1b --pixels 1024 --out docs/benchmarks/refine_sdxl.json

The programs are those of the job, compiled for this machine's CPU and not run; parameters are
shapes without numbers, so a net of gigabytes takes none. Memory is `memory_analysis()` of each
compiled program, and beside it what the device holds meanwhile: the text encoders. XLA's CPU
backend computes in float32 what is asked for in bfloat16, and its copies of activations are part
of the figures; those of kernels it would keep throughout a loop, which is switched off. Arithmetic
is `cost_analysis()`. Minutes are predicted: operations by the peak on a data sheet, of which
`SHARE` is assumed to be reached. Compiling takes one to three CPU minutes a program. What came out
is on docs/benchmarks.md.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import unets

from prolora_jax.adapters.formats.flax_keys import LORA
from prolora_jax.architectures.flax_trees import flax_table, nested
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.io.atomic import write_text
from prolora_jax.nets.adapters.tree import grafted, kernels, leaf_at
from prolora_jax.nets.pipelines import answers
from prolora_jax.nets.pipelines.pipeline import Pipeline, Told
from prolora_jax.nets.sampling.noise import picture_keys
from prolora_jax.nets.sampling.samplers import sampler_named
from prolora_jax.nets.unet.config import from_diffusers
from prolora_jax.nets.unet.unet import UNet
from prolora_jax.nets.vae.config import vae_config
from prolora_jax.nets.vae.vae import Vae
from prolora_jax.refine import fitting
from prolora_jax.refine.job import student
from prolora_jax.refine.job.base_net import GUARD_ROWS
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.rows import Rows

CLIP_L, CLIP_H, CLIP_BIG_G = 123_060_480, 340_387_840, 694_659_840
TEXT_ENCODERS = {"sd15": CLIP_L, "sd21": CLIP_H} | dict.fromkeys(
    ("sdxl", "ssd-1b", "vega"), CLIP_L + CLIP_BIG_G
)
"""Parameters of the text encoders, which stay on the device beside the UNet."""
TOKENS, WORDS, POOLED = 77, 48, 1280
PEAKS = {"H100 SXM": 989e12, "16 GB card of 100 Tflop/s": 100e12}
"""Operations a second in bfloat16, dense, on data sheets."""
SHARE = 0.4
"""Of the peak: assumed, not measured."""
# In this order CPU programs use what remat has saved; in the usual one, made for many threads,
# everything is computed again right away and kept. The first changes machine code alone; the second
# leaves attention's scores in memory, which CPU programs fuse away and others do not.
THRIFTY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}
NO_COPIES = "--xla_disable_hlo_passes=while-loop-invariant-code-motion"
"""No copies of kernels in float32 that stay throughout a loop: accelerators need none."""
PROGRAMS = (
    *(f"{who}-{what}" for who in ("target", "source", "adapted") for what in ("draws", "answers")),
    "student",
)
"""`adapted` is the source with the adapter."""


class Net(NamedTuple):
    """A base model of shapes: its nets, its UNet's parameters, bytes of its text encoders."""

    pipeline: Pipeline
    unet: Any
    told: Told
    text_bytes: int


def made(config: dict[str, Any], side: int, encoders: int) -> Net:
    """A base model in bfloat16, without numbers.

    Args:
        config: of its UNet, in diffusers' words.
        side: height and width of latents.
        encoders: parameters of its text encoders.
    """
    parsed = from_diffusers(config)
    places = flax_table(unet_table(parsed.tensors))
    pipeline = Pipeline(
        unet=UNet(parsed, dtype=jnp.bfloat16),
        vae=Vae(vae_config(unets.PUBLISHED_VAE)),
        text_encoders={},
        tokenizers={},
        sampler=sampler_named("auto", unets.SCHEDULER, origin="scheduler"),
        zeros_for_empty=False,
        sample_size=side,
    )
    pooled = None
    if parsed.time_ids_dim is not None:
        sizes = 6 * config["addition_time_embed_dim"]
        pooled = shape(WORDS, config["projection_class_embeddings_input_dim"] - sizes)
    told = Told(shape(WORDS, TOKENS, config["cross_attention_dim"]), pooled)
    unet = nested({place: shape(*size, dtype=jnp.bfloat16) for place, size in places.items()})
    return Net(pipeline, unet, told, 2 * encoders)


def shape(*size: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array without numbers."""
    return jax.ShapeDtypeStruct(size, dtype)


def attention_factors(net: Net, rank: int) -> dict[str, Any]:
    """Factors of all attention modules, float32."""
    found = {}
    for path, place in sorted(kernels({"unet": net.unet}).items()):
        if ".attn" in path:
            inner, out = leaf_at({"unet": net.unet}, place).shape
            found[path] = shape(rank, inner), shape(out, rank)
    return found


def with_adapter(net: Net, rank: int) -> Net:
    """The same with an adapter beside its attention modules."""
    places, new = kernels({"unet": net.unet}), {}
    for path, (down, up) in attention_factors(net, rank).items():
        (_, *layer, _) = places[path]
        sides = {"down": down.shape[::-1], "up": up.shape[::-1]}
        for name, size in sides.items():
            new[*layer, f"{LORA}adapter", name, "kernel"] = shape(*size, dtype=jnp.bfloat16)
    return net._replace(unet=grafted(net.unet, new))


def rows_of(net: Net, count: int, side: int) -> tuple[Any, Told]:
    """Noisy pictures and what is told of them."""
    told = jax.tree.map(lambda a: shape(count, *a.shape[1:]), net.told)
    return shape(count, net.pipeline.unet.config.tensors.in_channels, side, side), told


def drawing(net: Net, scales: dict[str, float], recipe: RefineRecipe, side: int) -> Any:
    """The program that draws a batch."""
    count = recipe.asked_at_once((side, side))
    noisy, told = rows_of(net, count, side)
    untold = jax.tree.map(lambda a: shape(1, *a.shape[1:]), net.told)
    keys = picture_keys(range(count))
    how = net.pipeline, recipe.draw_steps, recipe.guidance > 1
    given = net.unet, told, untold, noisy, keys, recipe.guidance, scales
    return answers._draw.lower(*how, *given)


def answering(net: Net, scales: dict[str, float], recipe: RefineRecipe, side: int) -> Any:
    """The program that answers a batch of rows."""
    count = recipe.asked_at_once((side, side))
    noisy, told = rows_of(net, count, side)
    return answers._ask.lower(net.pipeline, net.unet, noisy, shape(count), told, scales)


def learning(net: Net, recipe: RefineRecipe, side: int, rank: int) -> Any:
    """The program that takes a step of the student."""
    size = side, side
    options = recipe.fit_for("refine", from_zero=False, size=size)
    factors = attention_factors(net, rank)
    predict = student.student_net(
        net.pipeline,
        {"unet": net.unet},
        net.told,
        factors,
        999.0,
        remat=recipe.computes_again(options, size, 1),
    )
    moments = jax.eval_shape(fitting._optimizer(options.clip).init, factors)
    key, losses = shape(2, dtype=jnp.uint32), shape(options.steps)
    state = fitting.FitState(factors, moments, shape(dtype=jnp.int32), key, losses)
    latents = shape(recipe.rows, *rows_of(net, 1, side)[0].shape[1:])
    words = shape(recipe.rows, dtype=jnp.int32)
    rows = Rows(latents, shape(recipe.rows), words, latents)
    how = {"batch": options.batch, "parts": options.parts, "clip": options.clip, "mesh": None}
    how["error"] = fitting.squared_error
    return fitting._step.lower(state, rows, predict, shape(), **how)


def compiled(lowered: Any, rows: int, beside: int) -> dict[str, float]:
    """What one program needs.

    Args:
        lowered: the program.
        rows: that go through the net at once. A loop's body is counted once.
        beside: bytes that the device holds besides.
    """
    program = lowered.compile(compiler_options=THRIFTY)
    memory = program.memory_analysis()
    given, kept = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "rows": rows,
        "arguments": given,
        "temporary": kept,
        "beside": beside,
        "bytes": given + kept + new + beside,
        "flop_a_row": program.cost_analysis()["flops"] / rows,
    }


def measured(
    source: Net,
    target: Net,
    recipe: RefineRecipe,
    side: int,
    rank: int,
    programs: Iterable[str] = PROGRAMS,
) -> dict[str, dict[str, float]]:
    """Programs, compiled.

    Args:
        source: the base model that the adapter is for.
        target: the one that it moves to.
        recipe: how.
        side: height and width of latents.
        rank: of adapter and student.
        programs: which; of `PROGRAMS`.
    """
    found = {}
    for name in programs:
        who, _, what = name.partition("-")
        net = {"source": source, "adapted": with_adapter(source, rank)}.get(who, target)
        scales = {"adapter": 1.0} if who == "adapted" else {}
        if what == "draws":
            rows = recipe.asked_at_once((side, side)) * (2 if recipe.guidance > 1 else 1)
            lowered = drawing(net, scales, recipe, side)
        elif what == "answers":
            rows = recipe.asked_at_once((side, side))
            lowered = answering(net, scales, recipe, side)
        else:
            options = recipe.fit_for("refine", from_zero=False, size=(side, side))
            rows, lowered = options.batch // options.parts, learning(net, recipe, side, rank)
        found[name] = compiled(lowered, rows, net.text_bytes)
        print(f"{name}: {found[name]['bytes'] / 1e9:.2f} GB", file=sys.stderr, flush=True)
    return found


def work(recipe: RefineRecipe, source: float, target: float, step: float) -> dict[str, float]:
    """Operations of a refinement: those that all adapters of a pair share, and those of each.

    Args:
        recipe: how.
        source: operations of a row through the source.
        target: through the target.
        step: of a row of the student's step, forth and back.
    """
    drawn = recipe.pictures * recipe.draw_steps * (2 if recipe.guidance > 1 else 1)
    exam, half = min(GUARD_ROWS, 4 * recipe.pictures), recipe.rows / 2
    steps = recipe.steps or fitting.RefineOptions().steps
    shared = (drawn + half + 2 * exam) * (target + source)
    words = 2 * len(recipe.prompts) * recipe.noises * source
    own = words + (drawn + 3 * half) * source + (half + 2 * recipe.rows) * target
    return {"shared": shared, "adapter": own + steps * recipe.batch * step}


def predicted(recipe: RefineRecipe, programs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Operations of a refinement, and its minutes on devices of `PEAKS`."""
    names = "source-answers", "target-answers", "student"
    todo = work(recipe, *(programs[name]["flop_a_row"] for name in names))
    minutes = {
        device: {part: count / (SHARE * peak) / 60 for part, count in todo.items()}
        for device, peak in PEAKS.items()
    }
    return {"flop": todo, "minutes": minutes}


def main() -> None:
    """Compile, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=TEXT_ENCODERS)
    parser.add_argument("target", choices=TEXT_ENCODERS)
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--program", action="append", choices=PROGRAMS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    # Read with the first program that is compiled; as an option of a program it has no effect.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {NO_COPIES}".strip()
    side = asked.pixels // 8
    source, target = (
        made(unets.PUBLISHED[name], side, TEXT_ENCODERS[name])
        for name in (asked.source, asked.target)
    )
    recipe = RefineRecipe(
        micro_batch=asked.micro_batch, at_once=asked.at_once, guidance=asked.guidance
    )
    programs = asked.program or PROGRAMS
    found: dict[str, Any] = {"asked": {k: str(v) for k, v in vars(asked).items()}}
    found |= {"jax": jax.__version__}
    found["programs"] = measured(source, target, recipe, side, asked.rank, programs)
    if {"source-answers", "target-answers", "student"} <= {*programs}:
        found["predicted"] = predicted(recipe, found["programs"])
    print(json.dumps(found, indent=1))
    if asked.out is not None:
        write_text(asked.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
