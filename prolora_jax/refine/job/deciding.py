"""`--method auto` in words: what an adapter gets, and why; what keeps a pair from being taught."""

from prolora_jax.errors import ProloraError, Refusal
from prolora_jax.plans.refined import Refined
from prolora_jax.refine import guard

NO_NETS = frozenset(
    {
        Refusal.UNREADABLE_BASE,
        Refusal.UNSUPPORTED_CONFIG,
        Refusal.MISSING_FILE,
        Refusal.MISSING_LIBRARY,
        Refusal.WRONG_BASE,
    }
)
"""Codes of what keeps two base models from drawing or writing for each other. All else is damage,
which no choice of a method mends."""

_ADVICE = "; use `prolora migrate`"

UNPROVEN = (
    "two language models: students of such pairs were found below their copies (docs/evidence.md, "
    "rules 19 and 20); expected base models that draw; `prolora refine` makes one all the same"
)
"""Why `auto` copies the adapters of language models."""


def decided(record: Refined) -> str:
    """What the guard and the adapter's kind have decided, in a sentence.

    Args:
        record: of the refinement.
    """
    side = "below" if record.disagreement < guard.LIMIT else "not below"
    of_pair = f"R = {record.disagreement:.3f} is {side} the limit of {guard.LIMIT:g}"
    if record.way == "refine":
        return f"taught: {of_pair}, so that its effect can be added to the target"
    shown = f"it answers to {len(record.triggers)} of {len(record.words)} prompts"
    if record.way == "reteach":
        return f"taught anew: {of_pair}, and it is a concept ({shown})"
    return f"copied: {of_pair}, and it is a style ({shown}), which has another effect there"


def untaught(reason: ProloraError) -> str:
    """Why nothing was taught, and what would be needed, in a sentence.

    Args:
        reason: what keeps a refinement from being made.
    """
    return f"copied, as nothing was taught: {str(reason).removesuffix(_ADVICE)}"
