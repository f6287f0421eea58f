"""Steps of plans on the device: the rank columns of many adapters as one block per module.

The path of a module: factors from the host -> rows of a block, with the rows of other adapters of
its rank class -> both sides of the method (`projection.apply_side`) -> singular form where a rank
was asked for -> back on the host, padding removed, rank cut, rescaled.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, LoraModule, MadeFrom
from prolora_jax.adapters.late import LateModule
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.matching.pairs import ModulePair
from prolora_jax.matching.slices import Slice
from prolora_jax.method import encoding
from prolora_jax.method.encoding import HostFactors, rank_class
from prolora_jax.method.singular import singular_form
from prolora_jax.method.update_norms import squared_norm
from prolora_jax.migration.blocks import split_rows, stacked
from prolora_jax.migration.edges import holds, stored, to_the_middle
from prolora_jax.migration.own_modules import stays, unwritten
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.placing import OperatorsOnDevices, Placed
from prolora_jax.migration.projecting import (
    Block,
    Job,
    compressed,
    cut,
    finished,
    in_single,
    method_of,
    out_dtype,
    started,
    used_columns,
)
from prolora_jax.migration.tokens import in_places
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import BY_TOKEN, SLICED, Action, MigrationPlan, PlanStep

IN_FLIGHT = 3
"""Blocks that a device works on while the host prepares and collects others."""


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
        stays: whether the input's own tensors are written, and `factors` are stand-ins.
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
    stays: bool = False


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


Results = dict[str, Moved | AdapterRefused]
"""By target path: new factors, or why the file has to be refused."""


def move_all(
    works: Sequence[Work],
    pair: BasePair,
    options: MigrationOptions,
    progress: Progress | None = None,
    placed: OperatorsOnDevices | None = None,
) -> list[Results]:
    """New factors of some adapters, by target path; what a method leaves nothing of is left out.

    Args:
        works: adapters and their plans, all made for this pair and these options. Their modules
            are taken, so that inputs and outputs are not all held at the same time.
        pair: source and target.
        options: the options of the plans.
        progress: called with ("projection", done, total); one module of one adapter counts 1.
        placed: the pair's operators on the devices, where other batches come before and after.

    Returns:
        For each adapter one entry per step that has an update.
    """
    moved: list[Results] = [{} for _ in works]
    waiting = _jobs(works, pair, options, moved)
    total = sum(len(work.plan.steps) for work in works)
    done = sum(map(len, moved))
    placed = placed or OperatorsOnDevices(pair, options)
    placed.prepare(list(waiting), progress)
    in_flight = IN_FLIGHT * placed.devices
    running: deque[Block] = deque()

    def collect() -> None:
        nonlocal done
        block = running.popleft()
        for owner, path, result in _collect(block):
            moved[owner][path] = result
        done += len(block.jobs)
        if progress is not None:
            progress("projection", done, total)

    for modules, on_device in placed.each(list(waiting)):
        own = options.options_for(modules.target)
        for block in _blocks(waiting.pop(modules), on_device, own):
            running.append(block)
            if len(running) > in_flight:
                collect()
    while running:
        collect()
    return moved


def _jobs(
    works: Sequence[Work], bases: BasePair, options: MigrationOptions, moved: Sequence[Results]
) -> dict[ModulePair, list[Job]]:
    """What the device has to do, by pair of modules; copies are made here, into `moved`."""
    jobs: dict[ModulePair, list[Job]] = {}
    for owner, work in enumerate(works):
        modules = work.take_modules()
        for step in work.plan.steps:
            module, own = modules[step.source_path], options.options_for(step.path)
            if step.action is Action.COPY:
                moved[owner][step.path] = _copied(module, own, _places(step, bases))
            elif method_of(step, module, own) is not None:
                pair = ModulePair(step.source_path, step.path)
                jobs.setdefault(pair, []).append(Job(owner, step, module))
    return jobs


def _places(step: PlanStep, bases: BasePair) -> Slice | None:
    """Where rows and columns go; None where they keep their places."""
    if SLICED in step.flags:
        return bases.slices.of(step.source_path, step.path)
    return bases.tokens.rows(step) if BY_TOKEN in step.flags else None


def host_factors(module: LoraModule) -> HostFactors:
    """Factors as float32 matrices with the scale folded into `up`."""
    down = layout.down_to_matrix(module.down).astype(np.float32)
    up = layout.up_to_matrix(module.up).astype(np.float32) * np.float32(module.scale)
    return HostFactors(down, up)


def norm_of(module: LoraModule) -> float:
    """Frobenius norm of a module's update, scale included."""
    if isinstance(module, LateModule):
        return module.norm
    up, down = layout.up_to_matrix(module.up), layout.down_to_matrix(module.down)
    return abs(module.scale) * sqrt(squared_norm(up, down))


def _blocks(jobs: list[Job], placed: Placed, options: MigrationOptions) -> Iterator[Block]:
    """Send the jobs of one module to its device, in blocks of one rank class."""
    kinds: dict[tuple[int, bool, np.dtype], list[Job]] = {}
    for job in jobs:
        method = method_of(job.step, job.module, options)
        assert method is not None  # by `_jobs`
        small = compressed(method, job.module, options)
        kind = rank_class(job.module.rank), small, out_dtype(job.module, options)
        kinds.setdefault(kind, []).append(job)
    for (rank, *_), members in kinds.items():
        for start, places in split_rows(len(members), rank):
            chosen = members[start : start + places]
            middle = [to_the_middle(job.module) for job in chosen]
            factors = stacked([module for module, _ in middle], rank, places)
            yield started(chosen, [power for _, power in middle], factors, placed, options)


def _collect(block: Block) -> Iterator[tuple[int, str, Moved | AdapterRefused]]:
    """Wait for a block, and take it apart."""
    done, wide = finished(block), None
    dtype = out_dtype(block.jobs[0].module, block.options)
    for i, (owner, step, module) in enumerate(block.jobs):
        used = used_columns(done.made.used[i], int(done.ranks[i]), block.compressed)
        new = HostFactors(done.made.down[i][used], done.made.up[i][:, used])
        norm_in, norm_out = (
            float(np.ldexp(norm, block.powers[i])) for norm in (done.before[i], done.after[i])
        )
        norm_out *= abs(float(done.scale[i]))
        if done.left_over[i] or not done.made.finite[i] or not holds(new, norm_out):
            wide = wide or in_single(block, done)
            used = used_columns(wide.used[i], int(done.ranks[i]), block.compressed)
            narrow = HostFactors(wide.down[i][used], wide.up[i][:, used])
            new = stored(narrow, 1.0, done.left_over[i], dtype) if wide.finite[i] else None
        if new is None:
            yield owner, step.path, _too_large(step.path)
            continue
        a, b, c, d = done.energies[i] / (done.energies[i].sum() or 1.0)
        yield (
            owner,
            step.path,
            Moved(
                new,
                module.weight_shape,
                module.rank,
                norm_in,
                norm_out,
                float(done.kept[i]),
                (float(a), float(b), float(c), float(d)),
                block.still,
                module.made_from,
                new.up.dtype != dtype,
                None
                if done.sigma is None
                else np.ldexp(done.sigma[i][used] * abs(done.scale[i]), block.powers[i]),
            ),
        )


def _too_large(path: str) -> AdapterRefused:
    return AdapterRefused(
        f"{path}: the update holds numbers that are too large or too small for float32. Expected "
        "numbers that it can hold; check --scale and the adapter.",
        code=Refusal.NON_FINITE,
    )


def _copied(
    module: LoraModule, options: MigrationOptions, places: Slice | None
) -> Moved | AdapterRefused:
    """A module that is not projected: its rank is cut and its scale folded all the same.

    With `places` the output's rows and columns are these of the input's (`tokens.in_places`).
    """
    if places is None and stays(module, options):
        norm = norm_of(module)
        given = (unwritten(module), module.weight_shape, module.rank, norm, norm, 1.0)
        return Moved(*given, made_from=module.made_from, stays=True)
    middle, power = to_the_middle(module)
    norm_in = norm_placed = norm_of(middle)
    if places is not None:
        middle = in_places(middle, places)
        norm_placed = norm_of(middle)  # rows that are not there are no loss to be made good
    norm_out = norm_placed
    factors, kept, sigma = host_factors(middle), 1.0, None
    if not options.output_rank.is_met_by(module.rank, module.rank):
        whole, sigma = singular_form(factors)
        rank, kept = cut(sigma, module, options)
        factors = HostFactors(whole.down[:rank], whole.up[:, :rank])
        norm_out = encoding.update_norm(factors)
    scale = options.scale
    if options.rescale == "norm":
        scale *= norm_placed / norm_out if norm_out > 0.0 else 1.0
    dtype = out_dtype(module, options)
    new = stored(factors, scale, power, dtype)
    if new is None:
        return _too_large(module.path)
    shape = middle.weight_shape
    norm_in, norm_out = (float(np.ldexp(norm, power)) for norm in (norm_in, norm_out))
    made, wide = module.made_from, new.up.dtype != dtype
    norm_out *= abs(scale)
    sizes = None if sigma is None else np.ldexp(sigma[: new.rank] * abs(scale), power)
    given = (new, shape, module.rank, norm_in, norm_out, kept)
    return Moved(*given, made_from=made, in_float32=wide, sigma=sizes)
