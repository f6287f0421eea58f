"""Steps of plans on the device: the rank columns of many adapters as one block per module.

The path of a module: factors from the host -> rows of a block, with the rows of other adapters of
its rank class -> both sides of the method (`projection.apply_side`) -> singular form where a rank
was asked for -> back on the host, padding removed, rank cut, rescaled.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import jax
import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, LoraModule, MadeFrom
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.matching.pairs import ModulePair
from prolora_jax.method import encoding
from prolora_jax.method.encoding import DTYPES, HostFactors
from prolora_jax.method.energies import measure
from prolora_jax.method.operators import Method, ModuleOperators, effective_method
from prolora_jax.method.projection import SideResult, apply_side, rows_of, to_file_factors
from prolora_jax.method.singular import gauge, singular_form, union
from prolora_jax.migration.blocks import matrix_shape, rank_class, split_rows, stacked
from prolora_jax.migration.edges import apart, holds, stored, to_the_middle
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action, MigrationPlan, PlanStep

IN_FLIGHT = 3
"""Blocks that the device works on while the host prepares and collects others."""

AHEAD = 2
"""Modules whose operators are asked for before their turn."""


class Moved(NamedTuple):
    """One module's new factors, on the host.

    Attributes:
        factors: in the output's dtype, scale folded in.
        shape: of the weight that the update was trained on.
        rank_in: rank of the input.
        norm_in: Frobenius norm of the input's update.
        norm_out: of the output's, before it is rounded to its dtype.
        kept: share of the projected update's squared norm that the chosen rank keeps.
        energies: shares of the input's squared norm in its four blocks; None for copies.
        still: directions that `rotation` left still, (left, right); None for other methods.
        made_from: the other algorithm that the input's factors were made from.
        in_float32: whether the output's dtype does not hold them, so that they are in float32.
        sigma: of a rank that is spread over the file, singular values of the factors' columns.
    """

    factors: HostFactors
    shape: tuple[int, ...]
    rank_in: int
    norm_in: float
    norm_out: float
    kept: float
    energies: tuple[float, float, float, float] | None = None
    still: tuple[int, int] | None = None
    made_from: MadeFrom | None = None
    in_float32: bool = False
    sigma: np.ndarray | None = None


@dataclass
class Work:
    """One adapter, resolved against the source's spec, and what is to be done with it.

    Attributes:
        modules: the modules that the plan's steps need, by path; none once they are taken.
        plan: for this pair.
    """

    modules: Mapping[str, LoraModule]
    plan: MigrationPlan

    @staticmethod
    def of(adapter: Adapter, plan: MigrationPlan) -> "Work":
        """What the plan needs of an adapter."""
        needed = {step.source_path for step in plan.steps}
        return Work({m.path: m for m in adapter.modules if m.path in needed}, plan)

    def take_modules(self) -> Mapping[str, LoraModule]:
        """The modules, which this object then holds no longer.

        Whoever takes them decides how long they live: a batch does not hold its inputs for as long
        as somebody knows what was asked for.
        """
        taken, self.modules = self.modules, {}
        return taken


class _Job(NamedTuple):
    """One module of one adapter to project; `owner` is the adapter's place in the batch."""

    owner: int
    step: PlanStep
    module: LoraModule


class _Block(NamedTuple):
    """What the device works on: some jobs of one module, and the results that will be there."""

    jobs: list[_Job]
    powers: list[int]
    still: tuple[int, int] | None
    compressed: bool
    left: SideResult
    right: SideResult
    options: MigrationOptions


Results = dict[str, Moved | AdapterRefused]
"""By target path: new factors, or why the file has to be refused."""


def move_all(
    works: Sequence[Work],
    pair: BasePair,
    options: MigrationOptions,
    progress: Progress | None = None,
) -> list[Results]:
    """New factors of some adapters, by target path; what a method leaves nothing of is left out.

    Args:
        works: adapters and their plans, all made for this pair and these options. Their modules
            are taken, so that inputs and outputs are not all held at the same time.
        pair: source and target.
        options: the options of the plans.
        progress: called with ("projection", done, total); one module of one adapter counts 1.

    Returns:
        For each adapter one entry per step that has an update.
    """
    moved: list[Results] = [{} for _ in works]
    waiting = _jobs(works, options, moved)
    total = sum(len(work.plan.steps) for work in works)
    done = sum(map(len, moved))
    pair.prepare_operators(list(waiting), options, progress)
    running: deque[_Block] = deque()

    def collect() -> None:
        nonlocal done
        block = running.popleft()
        for owner, path, result in _collect(block):
            moved[owner][path] = result
        done += len(block.jobs)
        if progress is not None:
            progress("projection", done, total)

    for modules, operators in _operators_ahead(list(waiting), pair, options):
        for block in _start(waiting.pop(modules), operators, options.options_for(modules.target)):
            running.append(block)
            if len(running) > IN_FLIGHT:
                collect()
    while running:
        collect()
    return moved


def _jobs(
    works: Sequence[Work], options: MigrationOptions, moved: Sequence[Results]
) -> dict[ModulePair, list[_Job]]:
    """What the device has to do, by pair of modules; copies are made here, into `moved`."""
    jobs: dict[ModulePair, list[_Job]] = {}
    for owner, work in enumerate(works):
        modules = work.take_modules()
        for step in work.plan.steps:
            module, own = modules[step.source_path], options.options_for(step.path)
            if step.action is Action.COPY:
                moved[owner][step.path] = _copied(module, own)
            elif _method(step, module, own) is not None:
                pair = ModulePair(step.source_path, step.path)
                jobs.setdefault(pair, []).append(_Job(owner, step, module))
    return jobs


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
    return effective_method(method, similarity.k_source, similarity.k_target, matrix_shape(module))


def _operators_ahead(
    wanted: list[ModulePair], pair: BasePair, options: MigrationOptions
) -> Iterator[tuple[ModulePair, ModuleOperators]]:
    """Operators of each pair of modules, asked for `AHEAD` early: a disk reads them meanwhile."""
    asked: deque[tuple[ModulePair, ModuleOperators]] = deque()
    for modules in wanted:
        asked.append((modules, pair.operators(modules, options)))
        if len(asked) > AHEAD:
            yield asked.popleft()
    while asked:
        yield asked.popleft()


def _start(
    jobs: list[_Job], operators: ModuleOperators, options: MigrationOptions
) -> Iterator[_Block]:
    """Send the jobs of one module to the device, in blocks of one rank class."""
    step = jobs[0].step
    method = _method(step, jobs[0].module, options)
    assert method is not None  # by `_jobs`
    # Not `jnp.asarray`: on CPU, `device_put` takes the mapped pages of a stored operator as they
    # are, and 8 GB for a pair of SDXL's size are not copied for every batch.
    on_device = jax.device_put([side.operator for side in operators])
    still = (operators.left.still, operators.right.still) if method == "rotation" else None
    kinds: dict[tuple[int, bool, np.dtype], list[_Job]] = {}
    for job in jobs:
        rank, compressed = rank_class(job.module.rank), _compressed(method, job.module, options)
        kinds.setdefault((rank, compressed, _dtype(job.module, options)), []).append(job)
    for (rank, compressed, _), members in kinds.items():
        for start, places in split_rows(len(members), rank):
            chosen = members[start : start + places]
            middle = [to_the_middle(job.module) for job in chosen]
            rows = rows_of(*stacked([module for module, _ in middle], rank, places))
            with jax.enable_x64(compressed):
                left, right = (
                    apply_side(side.form, matrices, block, compressed)
                    for side, matrices, block in zip(operators, on_device, rows, strict=True)
                )
            powers = [power for _, power in middle]
            yield _Block(chosen, powers, still, compressed, left, right, options)


def _dtype(module: LoraModule, options: MigrationOptions) -> np.dtype:
    """Of the output; float64 becomes float32, in which all is computed."""
    if options.dtype != "same":
        return DTYPES[options.dtype]
    return np.dtype(np.float32) if module.dtype == np.float64 else module.dtype


def _compressed(method: Method, module: LoraModule, options: MigrationOptions) -> bool:
    """Whether the singular form is needed: a rank was asked for that is not there already."""
    full = module.rank * (2 if method == "prolora" else 1)
    met = options.output_rank.is_met_by(full, module.rank)
    return not met or full > min(matrix_shape(module))


def _collect(block: _Block) -> Iterator[tuple[int, str, Moved | AdapterRefused]]:
    """Wait for a block, choose ranks and scales, have it stored, and take it apart."""
    options = block.options
    grams = jax.device_get((block.left.grams, block.right.grams))
    measured = measure(*grams)
    energies = np.stack(measured.energies, axis=1)
    before, after = np.sqrt(measured.before), np.sqrt(measured.after)
    ranks, kept = [job.module.rank for job in block.jobs], np.ones(len(before))
    mixing = form = None
    if block.compressed:
        parts = zip(*(side.parts for side in grams), strict=True)
        form = union([gauge(up, down) for up, down in parts])
        for i, job in enumerate(block.jobs):
            ranks[i], kept[i] = _cut(form.sigma[i], job.module, options)
        # As many as any adapter of the rank class can need, whoever else is in the block.
        keep = options.output_rank.at_most(form.sigma.shape[1], grams[0].total.shape[1])
        mixing = (form.up[:, :keep].astype(np.float32), form.down[:, :keep].astype(np.float32))
        after = after * np.sqrt(kept)
    scale = np.full_like(before, options.scale)
    if options.rescale == "norm":
        scale *= np.divide(before, after, out=np.ones_like(after), where=after > 0)
    dtype = _dtype(block.jobs[0].module, options)
    parts = block.left.parts, block.right.parts, mixing
    factors = [apart(float(s), p) for s, p in zip(scale, block.powers, strict=False)]
    on_device = np.ones_like(scale, np.float32)
    on_device[: len(factors)] = [factor for factor, _ in factors]
    made = jax.device_get(to_file_factors(*parts, on_device, dtype.name))
    wide = None
    for i, (owner, step, module) in enumerate(block.jobs):
        used = _used(made.used[i], ranks[i], block.compressed)
        new = HostFactors(made.down[i][used], made.up[i][:, used])
        norm_in, norm_out = (
            float(np.ldexp(norm, block.powers[i])) for norm in (before[i], after[i])
        )
        norm_out *= abs(float(scale[i]))
        if factors[i][1] or not made.finite[i] or not holds(new, norm_out):
            wide = wide or jax.device_get(to_file_factors(*parts, on_device, "float32"))
            used = _used(wide.used[i], ranks[i], block.compressed)
            narrow = HostFactors(wide.down[i][used], wide.up[i][:, used])
            new = stored(narrow, 1.0, factors[i][1], dtype) if wide.finite[i] else None
        if new is None:
            yield owner, step.path, _too_large(step.path)
            continue
        a, b, c, d = energies[i] / (energies[i].sum() or 1.0)
        yield (
            owner,
            step.path,
            Moved(
                new,
                (module.up.shape[0], *module.down.shape[1:]),
                module.rank,
                norm_in,
                norm_out,
                float(kept[i]),
                (float(a), float(b), float(c), float(d)),
                block.still,
                module.made_from,
                new.up.dtype != dtype,
                form and np.ldexp(form.sigma[i][used] * abs(scale[i]), block.powers[i]),
            ),
        )


def _used(used: np.ndarray, rank: int, singular: bool) -> np.ndarray | slice:
    """Columns of one adapter to keep: of the rank chosen, without those that are zero."""
    if singular:
        used = used & (np.arange(len(used)) < rank)
    if used.all():
        return slice(None)  # a view: the numbers stay where the device has put them
    return np.flatnonzero(used) if used.any() else np.array([0])


def _too_large(path: str) -> AdapterRefused:
    return AdapterRefused(
        f"{path}: the update holds numbers that are too large or too small for float32. Expected "
        "numbers that it can hold; check --scale and the adapter.",
        code=Refusal.NON_FINITE,
    )


def _copied(module: LoraModule, options: MigrationOptions) -> Moved | AdapterRefused:
    """A module that is not projected: its rank is cut and its scale folded all the same."""
    middle, power = to_the_middle(module)
    factors, kept, sigma = host_factors(middle), 1.0, None
    if not options.output_rank.is_met_by(module.rank, module.rank):
        whole, sigma = singular_form(factors)
        rank, kept = _cut(sigma, module, options)
        factors = HostFactors(whole.down[:rank], whole.up[:, :rank])
    norm_in, norm_out = middle.norm, encoding.update_norm(factors)
    scale = options.scale
    if options.rescale == "norm":
        scale *= norm_in / norm_out if norm_out > 0.0 else 1.0
    dtype = _dtype(module, options)
    new = stored(factors, scale, power, dtype)
    if new is None:
        return _too_large(module.path)
    shape = (module.up.shape[0], *module.down.shape[1:])
    norm_in, norm_out = (float(np.ldexp(norm, power)) for norm in (norm_in, norm_out))
    made, wide = module.made_from, new.up.dtype != dtype
    norm_out *= abs(scale)
    sizes = None if sigma is None else np.ldexp(sigma[: new.rank] * abs(scale), power)
    given = (new, shape, module.rank, norm_in, norm_out, kept)
    return Moved(*given, made_from=made, in_float32=wide, sigma=sizes)


def _cut(sigma: np.ndarray, module: LoraModule, options: MigrationOptions) -> tuple[int, float]:
    """How many columns of a singular form to keep, and the share of the squared norm they hold."""
    rank = options.output_rank.columns(sigma, module.rank)
    rank = min(rank, *matrix_shape(module))
    squared = np.square(sigma, dtype=np.float64)
    return rank, float(squared[:rank].sum() / squared.sum()) if squared.any() else 1.0
