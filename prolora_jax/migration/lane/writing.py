"""One output with its report, from where its numbers lie."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from prolora_jax.adapters.formats.dumping import header_strings
from prolora_jax.adapters.formats.header_strings import HASHES, stripped
from prolora_jax.io.adapters.hashes import file_hashes
from prolora_jax.io.containers.streamed import header_bytes, write_pieces
from prolora_jax.io.outputs.reports import write_report
from prolora_jax.method.encoding import pad_rank
from prolora_jax.migration.files import Writing, clear_folder
from prolora_jax.migration.jobs import FileOutcome
from prolora_jax.migration.lane.moving import Batch
from prolora_jax.migration.lane.output import Output
from prolora_jax.migration.lane.reading import Read
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import target_strings
from prolora_jax.plans.folder_report import FileReport
from prolora_jax.plans.plan import Action
from prolora_jax.plans.report import MigrationReport, ModuleReport, Party


def write(
    batch: Batch, read: Read, output: Output, pair: BasePair, writing: Writing, seconds: float
) -> FileOutcome:
    """Write one file of a batch and its report.

    Args:
        batch: after `move`.
        read: the file, which is not odd.
        output: of files with its ranks.
        pair: source and target.
        writing: how.
        seconds: the file's share of the batch's time.

    Raises:
        OutputError: it cannot be written.
    """
    started, job = time.perf_counter(), read.job
    report = _report(batch, read, output)
    if job.replace:
        clear_folder(job.output)
    body = list(_body(batch, read.file, output))
    metadata = target_strings(read.adapter, report, pair.target.spec)
    header = header_strings(replace(output.head, metadata=metadata), output.format)
    header = stripped(header) if writing.strip_metadata else header
    kept = {key: text for key, text in header.items() if key not in HASHES}
    kept |= file_hashes(output.entries, body, kept, HASHES & header.keys())
    digest = write_pieces(job.output, [header_bytes(output.entries, kept), *body])
    energy = _energy(batch, read.file)
    brief = None if writing.pair is None else FileReport.of(report, energy, writing.pair)
    write_report(job.output, brief or report)
    taken = read.seconds + seconds + time.perf_counter() - started
    return FileOutcome(job, report, energy=energy, seconds=taken, written=digest)


def _body(batch: Batch, place: int, output: Output) -> Iterator[bytes | memoryview]:
    """The bytes behind the header."""
    for step, side, constant in output.origins:
        if step is None:
            yield constant
            continue
        factors = batch.factors[step, place]
        if output.ranks[step] > factors.rank:
            factors = pad_rank(factors, output.ranks[step])
        array = np.ascontiguousarray(factors.up if side == "up" else factors.down)
        yield array.reshape(-1).view(np.uint8).data


def _energy(batch: Batch, place: int) -> tuple[float, float]:
    """Squared norm of the input, and of what moves of it; summed as for single files."""
    squares = batch.squares[:, place].tolist()
    modules = batch.room.table.modules
    moving = (s for s, trained in zip(squares, modules, strict=True) if trained.moves)
    return sum(squares), sum(moving)


def _report(batch: Batch, read: Read, output: Output) -> MigrationReport:
    place = read.file
    modules = tuple(
        _module(batch, number, place, module)
        for number, module in zip(output.reported, output.report.modules, strict=True)
    )
    party = Party(read.adapter.origin, read.fingerprint)
    return replace(output.report, input=party, modules=modules)


def _module(batch: Batch, number: int, place: int, module: ModuleReport) -> ModuleReport:
    norm_in, norm_out = batch.norms[number, :, place].tolist()
    rank = batch.factors[number, place].rank
    found: dict[str, Any] = {"norm_in": norm_in, "norm_out": norm_out, "rank_out": rank}
    if module.action is not Action.COPY:
        found["kept"] = float(batch.kept[number, place])
        found["energies"] = tuple(batch.energies[number, place].tolist())
        found["still_left"], found["still_right"] = batch.still.get(number, (None, None))
    # Not `dataclasses.replace`, which takes three times as long for hundreds of modules a file.
    return ModuleReport(**vars(module) | found)
