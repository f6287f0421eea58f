"""`--rank budget=` and `mean=`: a file's rank spread over its modules once all have moved."""

from collections.abc import Mapping, Sequence

import numpy as np

from prolora_jax.method.encoding import HostFactors
from prolora_jax.method.spreading import spread
from prolora_jax.migration.execute import Moved
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import PlanStep
from prolora_jax.plans.report import over_budget


def spread_ranks(
    moved: Mapping[str, Moved], steps: Sequence[PlanStep], options: MigrationOptions
) -> tuple[dict[str, Moved], tuple[str, ...]]:
    """Cut the modules of one file to the ranks that one budget gives them.

    Modules that follow a rule with a rank of its own keep that, and cost nothing here.

    Args:
        moved: by target path, in singular form with every column.
        steps: their order.
        options: of the migration.

    Returns:
        The same modules, cut, and flags for the file: `over-budget` where even one column of each
        module is too much.
    """
    found, rank = dict(moved), options.output_rank
    paths = [s.path for s in steps if options.options_for(s.path).output_rank.spreads]
    if not rank.spreads or not paths:
        return found, ()
    each = [moved[path] for path in paths]
    if rank.kind == "budget":
        costs = [m.factors.up[:, 0].nbytes + m.factors.down[0].nbytes for m in each]
        budget = float(rank.value or 0.0)
    else:
        costs, budget = [1] * len(each), float(int((rank.value or 0.0) * len(each)))
    ranks = spread([_sizes(one) for one in each], costs, budget)
    for path, one, columns in zip(paths, each, ranks, strict=True):
        found[path] = _cut(one, columns)
    spent = sum(cost * columns for cost, columns in zip(costs, ranks, strict=True))
    return found, over_budget(spent, budget)


def _sizes(moved: Moved) -> np.ndarray:
    assert moved.sigma is not None  # `OutputRank.spreads` asks for them
    return moved.sigma


def _cut(moved: Moved, columns: int) -> Moved:
    squares, factors = np.square(_sizes(moved), dtype=np.float64), moved.factors
    whole = float(squares.sum())
    kept = float(squares[:columns].sum()) / whole if whole > 0.0 else 1.0
    return moved._replace(
        factors=HostFactors(factors.down[:columns], factors.up[:, :columns]),
        norm_out=moved.norm_out * kept**0.5,
        kept=moved.kept * kept,
        sigma=None,
    )
