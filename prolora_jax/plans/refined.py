"""What a refinement was: the record that stands in a migration's report."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class FromZero:
    """A module that could not be copied and was learned from nothing.

    Attributes:
        path: of the target.
        rank: of its factors.
        norm: of its update, Frobenius.
    """

    path: str
    rank: int
    norm: float


@dataclass(frozen=True)
class Refined:
    """What `prolora refine` did (docs/refine.md); of a copy that was kept it says why.

    Attributes:
        way: `refine`, `reteach`, or `copy` where the guard keeps a style as it is.
        teacher: of the student: `effect` or `absolute`; None for a copy.
        disagreement: R of the two base models, from the samples of both.
        sentence: what R says, for people.
        losses: L_s(T), L_t(S), L_t(T), L_s(S), of which R is made.
        words: what pools showed, without the empty prompt: the adapter's own words last.
        effects: of each word, as shares of the largest.
        triggers: words that the adapter answers to.
        is_style: whether it was taken for a style.
        steps: that the student was fitted for.
        loss_curve: of each step.
        missed: effect mismatch before and after the fit; None for a copy. A student that was
            fitted to it may not be judged by it.
        missed_by_teacher: effect mismatch of the answers that the student was given, on the same
            rows: next to nothing of `effect`, what the domains differ by of `absolute`, all but the
            triggers of a concept that was taught anew; None for a copy, in the demo, and of
            language models, whose two numbers above are distances to the teacher.
        from_zero: modules that could not be copied.
        stamp: digest of the recipe, the adapter, both base models and all that they draw with:
            who is asked for the same again has it already.
    """

    way: Literal["refine", "reteach", "copy"]
    teacher: Literal["effect", "absolute"] | None
    disagreement: float
    sentence: str
    losses: dict[str, float]
    words: tuple[str, ...]
    effects: dict[str, float]
    triggers: tuple[str, ...]
    is_style: bool
    stamp: str
    steps: int = 0
    loss_curve: tuple[float, ...] = ()
    missed: tuple[float, float] | None = None
    missed_by_teacher: float | None = None
    from_zero: tuple[FromZero, ...] = field(default=())

    @property
    def facts(self) -> dict[str, object]:
        """What a file's header says of it."""
        return {"way": self.way, "teacher": self.teacher, "steps": self.steps, "stamp": self.stamp}
