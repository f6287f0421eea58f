"""A rank that was spread over the modules of a file, against all of their singular values.

Two things are held: what was taken fits, and nothing that was left out is worth more for what it
costs than anything that was taken beyond the first column of each module.
"""

from collections.abc import Mapping

import numpy as np

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.plans.options import output_rank
from prolora_jax.plans.report import MigrationReport, ModuleReport, over_budget
from prolora_jax.verification.weights import shape_of

SLACK = 1e-5
"""Of a module's squared norm: singular values come from float32 products of factors."""


def spreads(told: MigrationReport) -> bool:
    """Whether the ranks of a file depend on each other."""
    return output_rank(told.options.rank).spreads


def spread_modules(told: MigrationReport) -> list[ModuleReport]:
    """The modules that share one budget; none where ranks are not spread."""
    options = told.options
    if not spreads(told):
        return []
    return [m for m in told.modules if options.options_for(m.path).rank == options.rank]


def budget_of(told: MigrationReport, after: Mapping[str, LoraModule]) -> tuple[dict, float]:
    """What a column of each module costs, by path, and what all of them may cost."""
    kind, value = output_rank(told.options.rank)
    modules = [module for module in spread_modules(told) if module.path in after]
    if kind == "mean":
        return {m.path: 1.0 for m in modules}, float(int((value or 0.0) * len(modules)))
    sizes = {m.path: after[m.path] for m in modules}
    costs = {p: float(sum(shape_of(m)) * m.up.dtype.itemsize) for p, m in sizes.items()}
    return costs, value or 0.0


def budget_flags(told: MigrationReport, after: Mapping[str, LoraModule]) -> tuple[str, ...]:
    """The flag that a file should have whose first columns are more than its budget.

    Args:
        told: the report.
        after: modules of the output.
    """
    if not spread_modules(told):
        return ()
    costs, budget = budget_of(told, after)
    return over_budget(sum(costs.values()), budget)


def budget_problems(
    told: MigrationReport, after: Mapping[str, LoraModule], sigmas: Mapping[str, np.ndarray]
) -> tuple[list[str], list[str]]:
    """What is wrong with the ranks of a file over which one rank was spread.

    Args:
        told: the report, whose ranks hold for the file.
        after: modules of the output.
        sigmas: singular values of every update before it is cut, by target path; none of those
            that the two weights leave open.

    Returns:
        Problems, and what could not be checked.
    """
    costs, budget = budget_of(told, after)
    modules = [module for module in spread_modules(told) if module.path in costs]
    if not modules:
        return [], []
    if any(module.path not in sigmas for module in modules):
        return [], ["how the file's rank is spread: some updates are undetermined"]
    spent = sum(costs[module.path] * module.rank_out for module in modules)
    problems = []
    if spent > max(budget, sum(costs.values())):
        problems.append(f"ranks of the file cost {spent:.0f}, {budget:.0f} was asked for")
    worth, loose = {}, {}
    for module in modules:
        squares = np.square(sigmas[module.path], dtype=np.float64)
        worth[module.path] = squares / costs[module.path]
        loose[module.path] = SLACK * float(squares.sum()) / costs[module.path]
    left = {
        m.path: float(worth[m.path][m.rank_out])
        for m in modules
        if m.rank_out < len(worth[m.path]) and worth[m.path][m.rank_out] > loose[m.path]
    }
    taken = {m.path: float(worth[m.path][m.rank_out - 1]) for m in modules if m.rank_out > 1}
    if left and taken:
        best, least = max(left, key=left.__getitem__), min(taken, key=taken.__getitem__)
        if left[best] - loose[best] > taken[least] + loose[least]:
            problems.append(
                f"{best}: a column was left out that holds more for its cost than one of {least}"
            )
    if left:
        top = max(value - loose[path] for path, value in left.items())
        near = [path for path, value in left.items() if value + loose[path] >= top]
        if all(spent + costs[path] <= budget for path in near):
            problems.append(f"{near[0]}: a column was left out, and the budget has room for it")
    return problems, []
