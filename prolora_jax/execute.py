"""Steps of a plan on the device: modules of one shape in one jitted call, operators padded.

The path of a module: factors and bases from the host -> F, G, c in float64 (`prepare_side`) ->
a padded batch -> `project_batch` -> back on the host, padding removed, rank cut, rescaled.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax import encoding, layout, lora
from prolora_jax.adapter import Adapter, LoraModule
from prolora_jax.bases import Progress
from prolora_jax.encoding import HostFactors
from prolora_jax.options import MigrationOptions, output_rank
from prolora_jax.pair import BasePair
from prolora_jax.plan import Action, MigrationPlan, PlanStep
from prolora_jax.projection import (
    Method,
    Projected,
    SideOperator,
    effective_method,
    prepare_side,
    project_batch,
    still_pairs,
)

WIDTH_STEP = 128
"""Operators are padded to a multiple of this (or to full width), so that few shapes compile."""

RANK_STEP = 8
"""Ranks are padded to a multiple of this inside a batch; zero columns change nothing."""

OPERATOR_BYTES = 512 * 2**20
"""Operators held for one device call; a group that needs more is cut into several calls."""


class Moved(NamedTuple):
    """One module's new factors, on the host.

    Attributes:
        factors: float32, scale folded in.
        kept: share of the projected update's squared norm that the chosen rank keeps.
        energies: shares of the input's squared norm in its four blocks; None for copies.
        still: directions that `rotation` left still, (left, right); None for other arms.
    """

    factors: HostFactors
    kept: float
    energies: tuple[float, float, float, float] | None = None
    still: tuple[int, int] | None = None


class Job(NamedTuple):
    """One module to project."""

    step: PlanStep
    method: Method
    factors: HostFactors
    width: int
    compressed: bool


Group = tuple[Method, int, int, int, int, bool]
"""What one compiled call needs to have in common: method, out, in, width, rank, compressed."""


def move_all(
    adapter: Adapter, pair: BasePair, plan: MigrationPlan, progress: Progress | None = None
) -> dict[str, Moved]:
    """New factors by target path; a module of which an arm leaves nothing is left out.

    Args:
        adapter: resolved against the source's spec.
        pair: the pair that the plan was made for.
        plan: its steps are run.
        progress: called with ("projection", done, total).

    Returns:
        One entry per step that has an update.
    """
    sources = {module.path: host_factors(module) for module in adapter.modules}
    moved: dict[str, Moved] = {}
    groups: dict[Group, list[Job]] = {}
    for step in plan.steps:
        factors = sources[step.source_path]
        if step.action is Action.COPY:
            moved[step.path] = _copied(factors, plan.options)
            continue
        job = _job(step, factors, plan.options)
        if job is not None:
            groups.setdefault(_group(job), []).append(job)
    for group, jobs in groups.items():
        for batch in _batches(group, jobs):
            moved.update(_run_batch(group, batch, pair, plan.options))
            if progress is not None:
                progress("projection", len(moved), len(plan.steps))
    return moved


def host_factors(module: LoraModule) -> HostFactors:
    """Factors as float32 matrices with the scale folded into `up`."""
    down = layout.down_to_matrix(module.down).astype(np.float32)
    up = layout.up_to_matrix(module.up).astype(np.float32) * np.float32(module.scale)
    return HostFactors(down, up)


def _job(step: PlanStep, factors: HostFactors, options: MigrationOptions) -> Job | None:
    similarity = step.similarity
    if similarity is None:
        raise AssertionError(f"{step.path}: a projection step without a similarity")
    out, width_in = factors.up.shape[0], factors.down.shape[1]
    method = next(m for m in get_args(Method) if m == options.method)
    method = effective_method(method, similarity.k_source, similarity.k_target, (out, width_in))
    if method is None:
        return None
    k = max(similarity.k_source, similarity.k_target)
    width = min(_round_up(k, WIDTH_STEP), min(out, width_in))
    full_rank = factors.rank * (2 if method == "prolora" else 1)
    wanted = output_rank(options.rank)
    # Rank r or less is already there for the arms that keep the rank.
    enough = wanted[0] == "exact" or (wanted[0] == "source" and full_rank == factors.rank)
    compressed = not enough or full_rank > min(out, width_in)
    return Job(step, method, factors, width, compressed)


def _group(job: Job) -> Group:
    rank = _round_up(job.factors.rank, RANK_STEP)
    out, width_in = job.factors.up.shape[0], job.factors.down.shape[1]
    return job.method, out, width_in, job.width, rank, job.compressed


def _batches(group: Group, jobs: list[Job]) -> Iterator[list[Job]]:
    _, out, width_in, width, _, _ = group
    size = max(1, OPERATOR_BYTES // (8 * width * (out + width_in)))
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _run_batch(
    group: Group, jobs: list[Job], pair: BasePair, options: MigrationOptions
) -> Mapping[str, Moved]:
    method, _, _, width, rank, compressed = group
    operators = [_operators(job, pair, options, width) for job in jobs]
    left, right = (
        SideOperator(*(jnp.asarray(np.stack(a)) for a in zip(*side, strict=True)))
        for side in zip(*operators, strict=True)
    )
    padded = [encoding.pad_rank(job.factors, rank) for job in jobs]
    factors = lora.Factors(
        jnp.asarray(np.stack([f.down for f in padded])),
        jnp.asarray(np.stack([f.up for f in padded])),
    )
    min_cos = options.rotation_min_cos
    with jax.enable_x64(compressed):  # `lora.spectrum` works in float64 then
        result = jax.device_get(
            project_batch(method, left, right, factors, min_cos, compressed=compressed)
        )
    return {
        job.step.path: _collect(job, result, index, operators[index], options)
        for index, job in enumerate(jobs)
    }


def _operators(
    job: Job, pair: BasePair, options: MigrationOptions, width: int
) -> tuple[SideOperator, SideOperator]:
    source, target, k_s, k_t = pair.spans(job.step.path, job.step.source_path, options)
    return (
        prepare_side(source.u[:, :k_s], target.u[:, :k_t], width),
        prepare_side(source.v[:, :k_s], target.v[:, :k_t], width),
    )


def _collect(
    job: Job,
    result: Projected,
    index: int,
    operators: tuple[SideOperator, SideOperator],
    options: MigrationOptions,
) -> Moved:
    """One module out of a batch: padding off, rank cut, rescaled."""
    factors = HostFactors(*(np.asarray(a[index]) for a in result.factors))
    energies = tuple(float(e[index]) for e in result.energies)
    total = sum(energies) or 1.0
    shares = (energies[0] / total, energies[1] / total, energies[2] / total, energies[3] / total)
    still = None
    similarity = job.step.similarity
    if job.method == "rotation" and similarity is not None:
        k_s, k_t = similarity.k_source, similarity.k_target
        left, right = (still_pairs(op, k_s, k_t, options.rotation_min_cos) for op in operators)
        still = (left, right)
    kept = 1.0
    if result.sigma is not None:
        factors, kept = _cut(factors, np.asarray(result.sigma[index]), job.factors.rank, options)
    factors = encoding.drop_zero_columns(factors)
    return Moved(_rescaled(factors, job.factors, options), kept, shares, still)


def _copied(factors: HostFactors, options: MigrationOptions) -> Moved:
    wanted = output_rank(options.rank)
    if wanted[0] in ("exact", "source"):
        return Moved(_rescaled(factors, factors, options), 1.0)
    with jax.enable_x64(True):
        whole = jax.device_get(lora.spectrum(lora.Factors(*map(jnp.asarray, factors))))
    cut, kept = _cut(HostFactors(*whole.factors), whole.sigma, factors.rank, options)
    return Moved(_rescaled(cut, factors, options), kept)


def _cut(
    factors: HostFactors, sigma: np.ndarray, rank_in: int, options: MigrationOptions
) -> tuple[HostFactors, float]:
    """The leading columns of a singular form, and the share of the squared norm they hold."""
    limit = min(factors.up.shape[0], factors.down.shape[1])
    keep = min(encoding.columns_for(sigma, output_rank(options.rank), rank_in), limit)
    squared = np.square(sigma, dtype=np.float64)
    kept = float(squared[:keep].sum() / squared.sum()) if squared.any() else 1.0
    return HostFactors(factors.down[:keep], factors.up[:, :keep]), kept


def _rescaled(factors: HostFactors, before: HostFactors, options: MigrationOptions) -> HostFactors:
    """`--rescale norm` and `--scale`, into `up`."""
    scale = options.scale
    if options.rescale == "norm":
        norm = encoding.update_norm(factors)
        scale *= encoding.update_norm(before) / norm if norm > 0.0 else 1.0
    return HostFactors(factors.down, factors.up * np.float32(scale))


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
