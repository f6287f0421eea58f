"""One module of many adapters on a device: rank columns in, factors of files out.

The path of a block: rows of rank columns -> both sides of the method (`projection.apply_side`) ->
singular form where a rank was asked for -> back on the host, in the file's dtype.
"""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import jax
import numpy as np

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.method.encoding import DTYPES
from prolora_jax.method.energies import measure
from prolora_jax.method.operators import Method, ModuleOperators, effective_method
from prolora_jax.method.projection import (
    SideResult,
    apply_side,
    rows_of,
    to_file_factors,
)
from prolora_jax.method.singular import gauge, union
from prolora_jax.migration.blocks import Factors, matrix_shape
from prolora_jax.migration.edges import apart
from prolora_jax.migration.placing import Placed
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import PlanStep


class Job(NamedTuple):
    """One module of one adapter to project; `owner` is the adapter's place in the batch."""

    owner: int
    step: PlanStep
    module: LoraModule


class Block(NamedTuple):
    """What the device works on: some jobs of one module, and the results that will be there.

    Attributes:
        jobs: of one module.
        powers: of two, which the updates were divided by (`edges.to_the_middle`).
        still: directions that `rotation` leaves still, (left, right); None for other methods.
        compressed: whether the singular form is needed.
        left: of the `up` side.
        right: of the `down` side.
        options: of the module.
    """

    jobs: Sequence[Job]
    powers: Sequence[int]
    still: tuple[int, int] | None
    compressed: bool
    left: SideResult
    right: SideResult
    options: MigrationOptions


class Stored(NamedTuple):
    """`projection.FileFactors` on the host."""

    up: np.ndarray
    down: np.ndarray
    used: np.ndarray
    finite: np.ndarray


class Finished(NamedTuple):
    """A block on the host; the first axis of every array is that of its jobs.

    Attributes:
        made: factors in the file's dtype.
        ranks: of each output, as far as they were chosen.
        kept: share of the squared norm that they hold.
        energies: `(jobs, 4)`: squared norms of the input's four blocks.
        before: norm of each update, divided by 2 to its power.
        after: of what the method made of it, before `scale`.
        scale: that was asked for, or that restores the norm.
        left_over: powers of two that the device has not multiplied with.
        scaled: what it has multiplied with.
        sigma: singular values of the updates' columns, before `scale`; None where the singular
            form was not needed.
    """

    made: Stored
    ranks: np.ndarray
    kept: np.ndarray
    energies: np.ndarray
    before: np.ndarray
    after: np.ndarray
    scale: np.ndarray
    left_over: Sequence[int]
    scaled: np.ndarray
    sigma: np.ndarray | None = None


def method_of(step: PlanStep, module: LoraModule, options: MigrationOptions) -> Method | None:
    """What a step comes to for the ranks of its pair; None where the method leaves nothing."""
    similarity = step.similarity
    if similarity is None:
        raise AssertionError(f"{step.path}: a projection step without a similarity")
    method = next(m for m in get_args(Method) if m == options.method)
    return effective_method(method, similarity.k_source, similarity.k_target, matrix_shape(module))


def out_dtype(module: LoraModule, options: MigrationOptions) -> np.dtype:
    """Of the output; float64 becomes float32, in which all is computed."""
    if options.dtype != "same":
        return DTYPES[options.dtype]
    return np.dtype(np.float32) if module.dtype == np.float64 else module.dtype


def compressed(method: Method, module: LoraModule, options: MigrationOptions) -> bool:
    """Whether the singular form is needed: a rank was asked for that is not there already."""
    full = module.rank * (2 if method == "prolora" else 1)
    met = options.output_rank.is_met_by(full, module.rank)
    return not met or full > min(matrix_shape(module))


def started(
    jobs: Sequence[Job],
    powers: Sequence[int],
    factors: Factors,
    placed: Placed,
    options: MigrationOptions,
) -> Block:
    """Have the device work on some jobs of one module; this does not wait for it.

    Args:
        jobs: of one module, one rank class and one dtype.
        powers: of two that their factors were divided by.
        factors: of the jobs, padded to a block (`blocks.stacked`).
        placed: the module's operators.
        options: of the module.
    """
    method = method_of(jobs[0].step, jobs[0].module, options)
    assert method is not None  # nothing is started then
    small = compressed(method, jobs[0].module, options)
    rows = rows_of(*jax.device_put(tuple(factors), placed.device))
    with jax.enable_x64(small):
        left, right = (
            apply_side(side.form, matrices, block, small)
            for side, matrices, block in zip(placed.operators, placed.matrices, rows, strict=True)
        )
    still = _still(placed.operators) if method == "rotation" else None
    return Block(jobs, powers, still, small, left, right, options)


def _still(operators: ModuleOperators) -> tuple[int, int]:
    return operators.left.still, operators.right.still


def finished(block: Block) -> Finished:
    """Wait for a block; choose ranks and scales, and have it stored in the file's dtype."""
    options, count = block.options, len(block.jobs)
    grams = jax.device_get((block.left.grams, block.right.grams))
    measured = measure(*grams)
    energies = np.stack(measured.energies, axis=1)[:count]
    before, after = np.sqrt(measured.before), np.sqrt(measured.after)
    ranks, kept = np.array([job.module.rank for job in block.jobs]), np.ones(len(before))
    mixing = form = None
    if block.compressed:
        parts = zip(*(side.parts for side in grams), strict=True)
        form = union([gauge(up, down) for up, down in parts])
        for i, job in enumerate(block.jobs):
            ranks[i], kept[i] = cut(form.sigma[i], job.module, options)
        # As many as any adapter of the rank class can need, whoever else is in the block.
        keep = options.output_rank.at_most(form.sigma.shape[1], grams[0].total.shape[1])
        mixing = (form.up[:, :keep].astype(np.float32), form.down[:, :keep].astype(np.float32))
        after = after * np.sqrt(kept)
    scale = np.full_like(before, options.scale)
    if options.rescale == "norm":
        scale *= np.divide(before, after, out=np.ones_like(after), where=after > 0)
    factors = [apart(float(s), p) for s, p in zip(scale, block.powers, strict=False)]
    scaled = np.ones_like(scale, np.float32)
    scaled[: len(factors)] = [factor for factor, _ in factors]
    dtype = out_dtype(block.jobs[0].module, options)
    made = _stored(block, mixing, scaled, dtype.name)
    found = (kept[:count], energies, before[:count], after[:count], scale[:count])
    left_over = [power for _, power in factors]
    return Finished(made, ranks, *found, left_over, scaled, None if form is None else form.sigma)


def in_single(block: Block, done: Finished) -> Stored:
    """The same block in float32, for what its dtype does not hold."""
    mixing = None
    if block.compressed:
        grams = jax.device_get((block.left.grams, block.right.grams))
        parts = zip(*(side.parts for side in grams), strict=True)
        form, keep = union([gauge(up, down) for up, down in parts]), done.made.used.shape[1]
        mixing = (form.up[:, :keep].astype(np.float32), form.down[:, :keep].astype(np.float32))
    return _stored(block, mixing, done.scaled, "float32")


def _stored(
    block: Block,
    mixing: tuple[np.ndarray, np.ndarray] | None,
    scaled: np.ndarray,
    dtype: str,
) -> Stored:
    parts = block.left.parts, block.right.parts
    made = jax.device_get(to_file_factors(*parts, mixing, scaled, dtype))
    return Stored(*map(np.asarray, made))


def cut(sigma: np.ndarray, module: LoraModule, options: MigrationOptions) -> tuple[int, float]:
    """How many columns of a singular form to keep, and the share of the squared norm they hold."""
    rank = options.output_rank.columns(sigma, module.rank)
    rank = min(rank, *matrix_shape(module))
    squared = np.square(sigma, dtype=np.float64)
    return rank, float(squared[:rank].sum() / squared.sum()) if squared.any() else 1.0


def used_columns(used: np.ndarray, rank: int, singular: bool) -> np.ndarray | slice:
    """Columns of one adapter to keep: of the rank chosen, without those that are zero.

    Args:
        used: which columns are not zero.
        rank: that was chosen.
        singular: whether they are in the order of their size.
    """
    if singular:
        used = used & (np.arange(len(used)) < rank)
    if used.all():
        return slice(None)  # a view: the numbers stay where the device has put them
    return np.flatnonzero(used) if used.any() else np.array([0])
