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


def decided(record: Refined) -> str:
    """What the guard and the adapter's kind have decided, in a sentence.

    Args:
        record: of the refinement.
    """
    side = "below" if record.disagreement < guard.LIMIT else "not below"
    of_pair = f"R = {record.disagreement:.3f} is {side} the limit of {guard.LIMIT:g}"
    if record.way == "refine":
        return f"taught: {of_pair}, so that its effect can be added to the target"
    if not record.words:  # a language model's adapter, of which no kind is known
        return f"copied: {of_pair}, so that its effect cannot be added to the target"
    shown = f"it answers to {len(record.triggers)} of {len(record.words)} prompts"
    if record.way == "reteach":
        return f"taught anew: {of_pair}, and it is a concept ({shown})"
    return f"copied: {of_pair}, and it is a style ({shown}), which has another effect there"


def untaught(reason: ProloraError) -> str:
    """Why nothing was taught, and what would be needed, in a sentence.

    Args:
        reason: what a refinement would be refused for.
    """
    return f"copied, as nothing could be taught: {str(reason).removesuffix(_ADVICE)}"
