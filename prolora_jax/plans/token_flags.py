"""What a report says of tokens: which stay behind, and whether anything is known of them."""

from collections.abc import Iterable

from prolora_jax.architectures.llm.layouts import has_rows_of_tokens
from prolora_jax.matching.tokens import TokenMap
from prolora_jax.plans.companions import PlannedCompanion
from prolora_jax.plans.plan import BY_TOKEN, SLICED, PlanStep

TOKENS_MISSING = "tokens-missing: "
"""Start of the flag of a file whose source has tokens that the target has not: their rows of what
is added to an embedding or a head stay behind. Their number and the first ones follow."""

NUMBERS_ASSUMED = "token-numbers-assumed"
"""Flag of a file that adds to rows of an embedding or a head by their numbers, which were taken
to be of the same tokens in both base models: nothing of theirs says which token is which."""

_SHOWN = 3


def token_flags(
    steps: Iterable[PlanStep], tokens: TokenMap | None, *, unlike: bool
) -> tuple[str, ...]:
    """Flags of a file that adds to rows of tokens.

    Args:
        steps: of its plan.
        tokens: of both base models; None where they are not known.
        unlike: whether the weights of such a layer differ; equal ones have equal tokens.
    """
    if tokens is None:
        return (NUMBERS_ASSUMED,) if unlike else ()
    if not tokens.missing or not any(BY_TOKEN in step.flags for step in steps):
        return ()
    first = ", ".join(map(repr, tokens.missing[:_SHOWN]))
    return (f"{TOKENS_MISSING}{len(tokens.missing)}, first {first}",)


def added_by_number(steps: Iterable[PlanStep], companions: Iterable[PlannedCompanion]) -> set[str]:
    """Layers to whose rows something is added by their numbers, unless tokens say otherwise.

    Of a slice the weights have said which row is which.

    Args:
        steps: of a plan.
        companions: of the same plan.
    """
    moved = {step.path for step in steps if SLICED not in step.flags}
    rows = {c.path for c in companions if c.part == "rows" and c.path is not None}
    saved = {c.path for c in companions if c.part == "saved" and c.path is not None}
    return layers_of_tokens(moved | saved) | rows


def layers_of_tokens(paths: Iterable[str]) -> set[str]:
    """Those of some layers that have a row for each token."""
    return {path for path in paths if has_rows_of_tokens(path)}
