"""Where the numbers of an output stand, traced through the writing of a made-up one.

The made-up factors lie side by side in memory that nobody touches. Written by the same code as any
adapter, each tensor of the output is one of them, told by its address, or a number that follows
from the table (an alpha); if there is any other, the files are not for the lane.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.dumping import concrete_format, dump
from prolora_jax.adapters.formats.folding import fold_scales
from prolora_jax.io.adapters.files import file_tensors, writes_folder
from prolora_jax.io.containers.streamed import entries_text
from prolora_jax.io.containers.tensors import table_of
from prolora_jax.method.encoding import HostFactors
from prolora_jax.migration.blocks import matrix_shape
from prolora_jax.migration.execute import Moved
from prolora_jax.migration.files import Writing
from prolora_jax.migration.lane.table import Irregular, Table
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.projecting import compressed, method_of, out_dtype
from prolora_jax.migration.single import encode
from prolora_jax.plans.plan import Action, PlanStep
from prolora_jax.plans.report import MigrationReport

_CONSTANT = 16
"""Bytes, at most, of a tensor that is an alpha."""


class Origin(NamedTuple):
    """Where a tensor of the output comes from.

    Attributes:
        step: number of the plan's step; None of a constant.
        side: of the step's factors.
        constant: the bytes of what is the same in every file.
    """

    step: int | None
    side: Literal["up", "down"] = "up"
    constant: bytes = b""


@dataclass(frozen=True)
class Output:
    """What all outputs of a table share.

    Attributes:
        format: that is written.
        entries: what the header says of the tensors.
        origins: of the tensors, in the order of the file.
        ranks: in the file of each step's output; 0 of those that a method leaves nothing of.
        head: the output without its tensors, for what its header says of ranks and scales.
        report: of a made-up file.
        reported: numbers of the steps in the report's modules, in their order.
    """

    format: str
    entries: str
    origins: tuple[Origin, ...]
    ranks: tuple[int, ...]
    head: Adapter
    report: MigrationReport
    reported: tuple[int, ...]


def output_of(
    table: Table, ranks: tuple[int, ...], pair: BasePair, writing: Writing, path: Path
) -> Output:
    """Trace the output of a table.

    Args:
        table: of the inputs.
        ranks: in the file of each step's output (`ranks_in_file`).
        pair: source and target.
        writing: the format.
        path: of one of the outputs.

    Raises:
        Irregular: it cannot be traced.
        ProloraError: nothing moves.
    """
    made, addresses = _made_up(table, ranks)
    adapter, report = encode(table.header, table.plan, made, pair)
    target = pair.target.spec
    format = concrete_format(writing.format, adapter, target)
    if writes_folder(path, format) or format in {"flax", "maxdiffusion", "gguf"}:
        raise Irregular("no single safetensors file is written")
    if format in {"peft", "diffusers", "diffusers-old"}:
        adapter = fold_scales(adapter)
    tensors = file_tensors(dump(adapter, format, target)[0], format)
    tables = table_of(tensors)
    origins = tuple(_origin(tensors[key], addresses) for key in tables)
    found = [(s.step, s.side) for s in origins if s.step is not None]
    if len(found) != len({*found}) or len(found) != 2 * len(made):
        raise Irregular("an output that has other tensors than its factors")
    numbers = {step.path: i for i, step in enumerate(table.plan.steps)}
    reported = tuple(numbers[module.path] for module in report.modules)
    return Output(format, entries_text(tables), origins, ranks, adapter, report, reported)


def largest_ranks(table: Table) -> tuple[int, ...]:
    """Of each step's output, whatever the numbers are; 0 where a method leaves nothing.

    Raises:
        Irregular: they depend on other modules of the file.
    """
    return tuple(_rank(step, table) for step in table.plan.steps)


def ranks_in_file(table: Table, ranks: Sequence[int]) -> tuple[int, ...]:
    """Of each step's output with the zeros that `single.encode` fills it up with.

    Args:
        table: of the input.
        ranks: of what was made; 0 where a method leaves nothing.
    """
    options = table.plan.options
    if options.uniform_rank or (table.header.uniform and not options.output_rank.spreads):
        return tuple(max(ranks) if rank else 0 for rank in ranks)
    return tuple(ranks)


def _rank(step: PlanStep, table: Table) -> int:
    trained = table.modules[table.by_path[step.source_path]]
    module, own = trained.module, table.plan.options.options_for(step.path)
    if own.output_rank.spreads:
        raise Irregular("a rank that depends on the file's other modules")
    if step.action is Action.COPY:
        return module.rank
    method = method_of(step, module, own)
    if method is None:
        return 0
    full = module.rank * (2 if method == "prolora" else 1)
    if not compressed(method, module, own):
        return full
    return min(own.output_rank.at_most(full, module.rank), full, *matrix_shape(module))


def _made_up(
    table: Table, ranks: tuple[int, ...]
) -> tuple[dict[str, Moved], dict[int, tuple[int, Literal["up", "down"], int]]]:
    """Results of each step in memory that nobody touches; (step, side, bytes) by address."""
    by_path, shapes = table.by_path, []
    for step, rank in zip(table.plan.steps, ranks, strict=True):
        module = table.modules[by_path[step.source_path]].module
        dtype = out_dtype(module, table.plan.options.options_for(step.path))
        out, width = matrix_shape(module)
        shapes.append((module, dtype, (rank, width), (out, rank)))
    size = sum(dtype.itemsize * (d[0] * d[1] + u[0] * u[1]) for _, dtype, d, u in shapes)
    room, at = np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8), 0
    made: dict[str, Moved] = {}
    addresses: dict[int, tuple[int, Literal["up", "down"], int]] = {}
    for number, (step, rank) in enumerate(zip(table.plan.steps, ranks, strict=True)):
        if not rank:
            continue
        module, dtype, *sides = shapes[number]
        arrays = []
        for side, shape in zip(("down", "up"), sides, strict=True):
            taken = shape[0] * shape[1] * dtype.itemsize
            array = room[at : at + taken].view(dtype).reshape(shape)
            addresses[array.ctypes.data] = number, side, taken
            arrays.append(array)
            at += taken
        projected = step.action is not Action.COPY
        made[step.path] = Moved(
            HostFactors(*arrays),
            (module.up.shape[0], *module.down.shape[1:]),
            module.rank,
            1.0,
            1.0,
            1.0,
            (1.0, 0.0, 0.0, 0.0) if projected else None,
        )
    return made, addresses


def _origin(
    array: np.ndarray, addresses: Mapping[int, tuple[int, Literal["up", "down"], int]]
) -> Origin:
    if array.nbytes <= _CONSTANT:
        return Origin(None, constant=array.tobytes())
    step, side, size = addresses.get(array.ctypes.data, (None, "up", 0))
    if step is None or array.nbytes != size or not array.flags.c_contiguous:
        raise Irregular("an output that is not written as it lies in memory")
    return Origin(step, side)
