"""What can be said of a projected module without a decomposition: names, numbers, norms, shares."""

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.plans.options import MigrationOptions, output_rank
from prolora_jax.plans.plan import Action, ModuleSimilarity
from prolora_jax.plans.report import ModuleReport
from prolora_jax.verification.updates import (
    CANCELLED,
    FLOAT32_TOLERANCE,
    TOLERANCES,
    dtype_out,
    dtype_problems,
    input_problems,
)
from prolora_jax.verification.weights import update_norm, used_columns

HAT_SLACK = 1e-5
"""Of a similarity that was corrected for chance, times what the correction divides by."""


def is_possible(told: ModuleSimilarity | None, shape: tuple[int, int]) -> bool:
    """Whether a similarity can be that of two weights of a shape: ranks, shares, corrections.

    Args:
        told: of the report.
        shape: (out, in) of both weights.
    """
    if told is None:
        return False
    ranks = told.k_source, told.k_target
    if not 0 <= min(ranks) <= max(ranks) <= min(shape):
        return False
    sides = (told.phi_left, told.phi_hat_left), (told.phi_right, told.phi_hat_right)
    for (phi, hat), dim in zip(sides, shape, strict=True):
        rest = 1.0 - max(ranks) / dim
        if not 0.0 <= phi <= 1.0 or (hat is None) != (rest <= 0.0):
            return False
        if hat is not None and not abs(1.0 - hat - (1.0 - phi) / rest) * rest <= HAT_SLACK:
            return False
    return True


def seen_problems(
    told: ModuleReport,
    before: LoraModule,
    after: LoraModule,
    options: MigrationOptions,
    brief: bool,
) -> list[str]:
    """What is wrong with a projected module and its record, as far as its factors tell.

    Args:
        told: its record.
        before: the input's module.
        after: the output's.
        options: as the report has them.
        brief: the record was made of totals.
    """
    problems = dtype_problems(told, after, dtype_out(before, options), brief)
    problems += norm_problems(told, after) + input_problems(told, before, brief)
    return problems if brief else problems + record_problems(told, after, options, True)


def norm_problems(told: ModuleReport, after: LoraModule) -> list[str]:
    """Whether the file's update has the norm that the report says; NaN never has."""
    size = update_norm(after)
    allowed = TOLERANCES.get(after.up.dtype.name, FLOAT32_TOLERANCE)
    if abs(told.norm_out - size) <= 2 * allowed * max(told.norm_out, size):
        return []
    return [f"report has norm_out {told.norm_out:.6g}; the file's is {size:.6g}"]


def record_problems(
    told: ModuleReport, after: LoraModule, options: MigrationOptions, projected: bool
) -> list[str]:
    """What of a record cannot be so, whatever the weights are.

    Args:
        told: the record.
        after: the output's module.
        options: as the report has them.
        projected: whether a method moved it.
    """
    problems = _rank_problems(told, after, options.rank) + _share_problems(told, projected)
    return problems + _length_problems(told, options.scale, options.rescale)


def _rank_problems(told: ModuleReport, after: LoraModule, wanted: str) -> list[str]:
    used, (kind, value) = used_columns(after), output_rank(wanted)
    problems = []
    if used > told.rank_out or (told.action is Action.PROJECT and max(used, 1) != told.rank_out):
        problems.append(f"report has rank_out {told.rank_out}; the file uses {used} columns")
    most = told.rank_in if kind == "source" else value if kind == "rank" else None
    if most is not None and used > most:
        problems.append(f"has rank {used}, asked for was {most:.0f}")
    return problems


def _share_problems(told: ModuleReport, projected: bool) -> list[str]:
    problems = []
    if not 0.0 <= told.kept <= 1.0 + FLOAT32_TOLERANCE:
        problems.append(f"report has kept {told.kept}; expected a share")
    if projected != (told.energies is not None):
        problems.append(f"report has energies {told.energies} of a module: {told.action}")
    if told.energies is not None:
        whole = sum(told.energies)
        shares = all(
            -FLOAT32_TOLERANCE <= share <= 1.0 + FLOAT32_TOLERANCE for share in told.energies
        )
        if not shares or not min(abs(whole - 1.0), abs(whole)) <= FLOAT32_TOLERANCE:
            problems.append(f"report has energies {told.energies}; expected shares of a whole")
    return problems


def _length_problems(told: ModuleReport, scale: float, rescale: str) -> list[str]:
    """No arm makes an update longer, and `--rescale norm` gives it the input's length."""
    most = abs(scale) * told.norm_in
    slack = (FLOAT32_TOLERANCE + CANCELLED) * max(most, told.norm_out)
    problems = []
    if not (told.norm_in >= 0.0 and told.norm_out <= most + slack):
        problems.append(f"report has norm_out {told.norm_out:.6g} of at most {most:.6g}")
    elif rescale == "norm" and told.norm_out > 0.0 and told.norm_out < most - slack:
        problems.append(f"report has norm_out {told.norm_out:.6g}, rescaled it is {most:.6g}")
    return problems
