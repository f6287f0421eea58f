"""Steps of plans on the device: the rank columns of many adapters as one block per module.

The path of a module: factors from the host -> rows of a block, with the rows of other adapters of
its rank class -> both sides of the arm (`projection.apply_side`) -> singular form where a rank
was asked for -> back on the host, padding removed, rank cut, rescaled.

A block has one of the widths of `WIDTHS`, filled up with zero rows. Every row is on its own in
all products, and the same row gives the same bits at each of these widths, whatever its place and
its neighbours: so a file's numbers do not depend on the files it is migrated with.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax import encoding, layout, lora
from prolora_jax.adapter import Adapter, LoraModule
from prolora_jax.bases import Progress
from prolora_jax.encoding import HostFactors
from prolora_jax.operators import Method, ModuleOperators, Side, effective_method
from prolora_jax.options import MigrationOptions, output_rank
from prolora_jax.pair import BasePair
from prolora_jax.plan import Action, MigrationPlan, PlanStep
from prolora_jax.projection import BlockEnergies, SideResult, apply_side, block_energies, compress

WIDTHS = (64, 512)
"""Rows of a block. On CPU a matmul gives a row other bits below 64 rows (measured, and tested)."""

RANK_STEP = 8
"""The smallest rank class; the others are its doubles. Zero rows pad a rank to its class."""

IN_FLIGHT = 3
"""Blocks that the device works on while the host prepares and collects others."""


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


class Work(NamedTuple):
    """One adapter, resolved against the source's spec, and what is to be done with it."""

    adapter: Adapter
    plan: MigrationPlan


class _Job(NamedTuple):
    """One module of one adapter to project; `owner` is the adapter's place in the batch."""

    owner: int
    step: PlanStep
    module: LoraModule


class _Block(NamedTuple):
    """What the device works on: some jobs of one module, and the results that will be there."""

    jobs: list[_Job]
    method: Method
    operators: ModuleOperators
    left: SideResult
    right: SideResult
    energies: BlockEnergies
    spectrum: lora.Spectrum | None


def move_all(
    works: Sequence[Work],
    pair: BasePair,
    options: MigrationOptions,
    progress: Progress | None = None,
) -> list[dict[str, Moved]]:
    """New factors of some adapters, by target path; what an arm leaves nothing of is left out.

    Args:
        works: adapters and their plans, all made for this pair and these options.
        pair: source and target.
        options: the options of the plans.
        progress: called with ("projection", done, total); one module of one adapter counts 1.

    Returns:
        For each adapter one entry per step that has an update.
    """
    moved: list[dict[str, Moved]] = [{} for _ in works]
    groups: dict[tuple[str, str], list[_Job]] = {}
    for owner, (adapter, plan) in enumerate(works):
        modules = {module.path: module for module in adapter.modules}
        for step in plan.steps:
            module = modules[step.source_path]
            if step.action is Action.COPY:
                moved[owner][step.path] = _copied(host_factors(module), options)
            elif _method(step, module, options) is not None:
                groups.setdefault((step.path, step.source_path), []).append(
                    _Job(owner, step, module)
                )
    total = sum(len(plan.steps) for _, plan in works)
    done = sum(map(len, moved))
    pair.prepare_operators({path: source for path, source in groups}, options, progress)
    running: deque[_Block] = deque()

    def collect() -> None:
        nonlocal done
        block = running.popleft()
        for owner, path, result in _collect(block, options):
            moved[owner][path] = result
        done += len(block.jobs)
        if progress is not None:
            progress("projection", done, total)

    for jobs in groups.values():
        for block in _start(jobs, pair, options):
            running.append(block)
            if len(running) > IN_FLIGHT:
                collect()
    while running:
        collect()
    return moved


def host_factors(module: LoraModule) -> HostFactors:
    """Factors as float32 matrices with the scale folded into `up`."""
    down = layout.down_to_matrix(module.down).astype(np.float32)
    up = layout.up_to_matrix(module.up).astype(np.float32) * np.float32(module.scale)
    return HostFactors(down, up)


def _method(step: PlanStep, module: LoraModule, options: MigrationOptions) -> Method | None:
    similarity = step.similarity
    if similarity is None:
        raise AssertionError(f"{step.path}: a projection step without a similarity")
    method = next(m for m in get_args(Method) if m == options.method)
    return effective_method(method, similarity.k_source, similarity.k_target, _shape(module))


def _shape(module: LoraModule) -> tuple[int, int]:
    return module.up.shape[0], int(np.prod(module.down.shape[1:]))


def _start(jobs: list[_Job], pair: BasePair, options: MigrationOptions) -> Iterator[_Block]:
    """Send the jobs of one module to the device, in blocks of one rank class."""
    step = jobs[0].step
    method = _method(step, jobs[0].module, options)
    assert method is not None  # by move_all
    operators = pair.operators(step.path, step.source_path, options)
    on_device = [jax.tree.map(jnp.asarray, side.operator) for side in operators]
    classes: dict[tuple[int, bool], list[_Job]] = {}
    for job in jobs:
        kind = rank_class(job.module.rank), _compressed(method, job.module, options)
        classes.setdefault(kind, []).append(job)
    for (rank, compressed), members in classes.items():
        for start, count in split_rows(len(members), rank):
            chosen = members[start : start + count]
            left, right = (
                apply_side(side.form, matrices, jnp.asarray(rows))
                for side, matrices, rows in zip(
                    operators, on_device, _rows(chosen, rank, count), strict=True
                )
            )
            spectrum = None
            if compressed:
                parts = (
                    tuple(x.reshape(count, rank, -1) for x in side.parts) for side in (left, right)
                )
                with jax.enable_x64(True):  # `lora.spectrum` works in float64 then
                    spectrum = compress(*parts)
            energies = block_energies(left, right)
            yield _Block(chosen, method, operators, left, right, energies, spectrum)


def rank_class(rank: int) -> int:
    """The smallest of 8, 16, 32, ... that is not below a rank."""
    size = RANK_STEP
    while size < rank:
        size *= 2
    return size


def split_rows(adapters: int, rank: int) -> Iterator[tuple[int, int]]:
    """Blocks for some adapters of one rank class.

    Args:
        adapters: how many there are.
        rank: their rank class.

    Yields:
        (first adapter, places): wide blocks as long as they are filled, narrow ones for the rest.
        The last one may have more places than there are adapters left.
    """
    narrow, wide = (max(width // rank, 1) for width in WIDTHS)
    start = 0
    while start < adapters:
        # A wide block that is more than half full costs less than narrow ones.
        places = wide if 2 * (adapters - start) > wide else narrow
        yield start, places
        start += places


def _rows(jobs: list[_Job], rank: int, places: int) -> tuple[np.ndarray, np.ndarray]:
    """`up.T` with the scale, and `down`, of some adapters: `(places, rank, out)`, `(.., in)`."""
    out, width = _shape(jobs[0].module)
    left = np.zeros((places, rank, out), np.float32)
    right = np.zeros((places, rank, width), np.float32)
    for i, (_, _, module) in enumerate(jobs):
        left[i, : module.rank] = layout.up_to_matrix(module.up).T
        left[i, : module.rank] *= np.float32(module.scale)
        right[i, : module.rank] = layout.down_to_matrix(module.down)
    return left, right


def _compressed(method: Method, module: LoraModule, options: MigrationOptions) -> bool:
    """Whether the singular form is needed: a rank was asked for that is not there already."""
    full = module.rank * (2 if method == "prolora" else 1)
    wanted = output_rank(options.rank)
    enough = wanted[0] == "exact" or (wanted[0] == "source" and full == module.rank)
    return not enough or full > min(_shape(module))


def _collect(block: _Block, options: MigrationOptions) -> Iterator[tuple[int, str, Moved]]:
    """Wait for a block and take it apart: padding off, rank cut, rescaled."""
    energies = np.stack(jax.device_get(block.energies), axis=1).astype(np.float64)
    left, right, spectrum = jax.device_get((block.left.parts, block.right.parts, block.spectrum))
    places = len(energies)
    up_rows = [part.reshape(places, -1, part.shape[1]) for part in left]
    down_rows = [part.reshape(places, -1, part.shape[1]) for part in right]
    sides: list[Side] = list(block.operators)
    for i, (owner, step, module) in enumerate(block.jobs):
        a, b, c, d = energies[i] / (energies[i].sum() or 1.0)
        before = host_factors(module) if options.rescale == "norm" else None
        kept = 1.0
        if spectrum is None:
            r = module.rank
            up = np.concatenate([part[i, :r] for part in up_rows]).T
            factors = HostFactors(np.concatenate([part[i, :r] for part in down_rows]), up)
        else:
            whole = HostFactors(spectrum.factors.down[i], spectrum.factors.up[i])
            factors, kept = _cut(whole, spectrum.sigma[i], module.rank, options)
        factors = encoding.drop_zero_columns(factors)
        still = (sides[0].still, sides[1].still) if block.method == "rotation" else None
        yield (
            owner,
            step.path,
            Moved(
                _rescaled(factors, before, options),
                kept,
                (float(a), float(b), float(c), float(d)),
                still,
            ),
        )


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


def _rescaled(
    factors: HostFactors, before: HostFactors | None, options: MigrationOptions
) -> HostFactors:
    """`--rescale norm` (to that of `before`) and `--scale`, into `up`."""
    scale = options.scale
    if options.rescale == "norm" and before is not None:
        norm = encoding.update_norm(factors)
        scale *= encoding.update_norm(before) / norm if norm > 0.0 else 1.0
    return factors if scale == 1.0 else HostFactors(factors.down, factors.up * np.float32(scale))
