"""A check of a file, with the check of the factors that were made of other algorithms' updates."""

from collections.abc import Sequence

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.verification.result import VerifyReport, with_problems
from prolora_jax.verification.structured import factor_problems
from prolora_jax.verification.weights import Weights


def with_factors(
    checked: VerifyReport,
    given: Sequence[Adapter],
    made: Sequence[Adapter],
    source: Weights,
    options: MigrationOptions,
) -> VerifyReport:
    """A check, with what is wrong with factors that were made of other algorithms' updates.

    Args:
        checked: of the output, against the factors.
        given: the inputs as their files have them, resolved against `source`.
        made: the same with LoRA factors alone.
        source: base model that they were trained on.
        options: of the migration, as its report has them.
    """
    shapes = {path: module.shape for path, module in source.spec.modules.items()}
    how = shapes, source.matrix, options.factors.energy, options.factors.most
    how = (*how, options.dora == "keep")
    found = [
        f"{path}: {problem}"
        for one, factors in zip(given, made, strict=True)
        for path, problems in factor_problems(one, factors, *how).items()
        for problem in problems
    ]
    return with_problems(checked, found)
