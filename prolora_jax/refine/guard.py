"""Whether two base models draw the same kind of pictures, and what follows from it.

The effect of an adapter can be added to a target's answers only there (docs/refine.md 4): on a
target whose domain has moved the effect is not the same vector, and no student can mend that.
"""

import math
from typing import Literal

from prolora_jax.errors import Refusal, UsageError

LIMIT = 0.3
"""R above which a style is copied. From trials (docs/evidence.md, appendix B); to be fixed on half
of the laboratory's pairs and tested on the others."""
SAME, NEAR = 0.05, 1.0
"""R up to which two base models agree, and R from which they do not at all; for words alone."""

_LOOK = "Where a copy brings nothing, look at what is drawn: classes may blur."
"""What the laboratory's stranger showed, whose losses were good (docs/evidence.md, rule 14)."""

Way = Literal["refine", "reteach", "copy"]


def disagreement(
    *, source_on_target: float, target_on_source: float, target_own: float, source_own: float
) -> float:
    """R = (L_s(T) + L_t(S)) / (L_t(T) + L_s(S)) - 1, L_m(P) the loss of m on noised samples of P.

    T are samples of the target and S of the source. R is zero when each net says of the other's
    pictures what it says of its own; it needs no pictures but those.

    Args:
        source_on_target: L_s(T).
        target_on_source: L_t(S).
        target_own: L_t(T).
        source_own: L_s(S).

    Returns:
        R; a little below zero by chance where both are the same.

    Raises:
        UsageError: a loss is not a positive number: a net is broken, or its samples are.
    """
    found = {
        "L_s(T)": source_on_target,
        "L_t(S)": target_on_source,
        "L_t(T)": target_own,
        "L_s(S)": source_own,
    }
    for name, loss in found.items():
        if not math.isfinite(loss) or loss <= 0:
            raise UsageError(
                f"guard: {name}, the loss of a base model on samples, cannot be compared. "
                f"Got {loss}; expected a positive number. "
                "Check that both base models draw pictures.",
                code=Refusal.NON_FINITE,
            )
    return (source_on_target + target_on_source) / (target_own + source_own) - 1


def sentence(r: float, limit: float = LIMIT) -> str:
    """What R says, for people.

    Args:
        r: from `disagreement`.
        limit: above which a style is copied.

    Returns:
        One sentence.
    """
    if r < min(SAME, limit):
        return f"Both draw the same kind of pictures: refine will help. {_LOOK}"
    if r < limit:
        return f"They draw nearly the same kind of pictures: refine will help. {_LOOK}"
    if r < max(NEAR, limit):
        return (
            "They draw different kinds of pictures: a concept can be taught anew, "
            "a style is better copied."
        )
    return (
        "They draw pictures of different domains: a style has another effect there and is better "
        "copied; a concept can be taught anew."
    )


def sentence_of_texts(r: float, limit: float = LIMIT) -> str:
    """What R of two language models says, for people.

    Its limit was calibrated on nets that draw; of language models it is a guess, and below it, too,
    students were found that a copy beats (docs/evidence.md, rules 19 and 20).

    Args:
        r: from `disagreement`, losses being those of each on the other's texts.
        limit: above which adapters are copied.
    """
    if r < limit:
        return (
            "Both write the same kind of text: refine may help. Compare what is written with the "
            "copy: students of language models fell below theirs, too (docs/evidence.md)."
        )
    return (
        "They write different kinds of text: what an adapter does on one is not added to the other."
    )


def way(r: float, *, style: bool, limit: float = LIMIT) -> Way:
    """How an adapter goes to a target: the guard first, then the adapter's kind.

    Args:
        r: of the pair, from `disagreement`.
        style: whether the adapter answers to most words (`triggers.is_style`).
        limit: R above which effects are not added.

    Returns:
        `refine` below the limit, else `reteach` for a concept and `copy` for a style.
    """
    if r < limit:
        return "refine"
    return "copy" if style else "reteach"
