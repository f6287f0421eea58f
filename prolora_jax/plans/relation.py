"""One sentence about a pair of base models, from the similarity of its modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import WEAK_SIMILARITY, Measure

CLOSE_SHARE = 0.9
"""Share of related modules from which two base models are called close relatives."""

UNRELATED_SHARE = 0.1
"""Share of related modules below which two base models are called unrelated."""

Word = Literal["close relatives", "partly related", "unrelated"]


@dataclass(frozen=True)
class Relation:
    """How two base models relate.

    Attributes:
        word: `close relatives`, `partly related` or `unrelated`.
        related: modules that pass the default gate and are not close to chance.
        total: modules compared.
        unmatched: target modules without a source module.
    """

    word: Word
    related: int
    total: int
    unmatched: int

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        advice = {
            "close relatives": "adapters should transfer; compare with --method copy.",
            "partly related": "expect a partial transfer; look at the skipped modules.",
            "unrelated": "do not expect transfer.",
        }[self.word]
        missing = f"; {self.unmatched} target modules have no source" if self.unmatched else ""
        return (
            f"{self.word.capitalize()}: {self.related} of {self.total} compared modules are "
            f"similar beyond chance{missing}; {advice}"
        )


def is_related(measure: Measure, options: MigrationOptions) -> bool:
    """Whether a module passes the gate with a chance-corrected similarity of at least 0.5.

    Identical weights do, close ones, and packed twins. A side on which both spans are everything
    says nothing either way.
    """
    if measure.similarity is None:
        return measure.identical or measure.close or measure.twin
    corrected = (measure.similarity.phi_hat_left, measure.similarity.phi_hat_right)
    beyond_chance = all(value is None or value >= WEAK_SIMILARITY for value in corrected)
    informative = any(value is not None for value in corrected)
    return beyond_chance and informative and measure.similarity.passes(options)


def relation(
    measures: Mapping[str, Measure], unmatched: int, options: MigrationOptions
) -> Relation:
    """Sum up the modules of a pair.

    Args:
        measures: by target path.
        unmatched: number of target modules that no source module was found for.
        options: the gate.

    Returns:
        `close relatives` when at least 90 % of the compared modules are related, `unrelated`
        when fewer than 10 % are (or none was compared), else `partly related`.
    """
    related = sum(is_related(m, options.options_for(path)) for path, m in measures.items())
    total = len(measures)
    word: Word = "partly related"
    if total == 0 or related < UNRELATED_SHARE * total:
        word = "unrelated"
    elif related >= CLOSE_SHARE * total:
        word = "close relatives"
    return Relation(word, related, total, unmatched)


def said_of(measures: Mapping[str, Measure], options: MigrationOptions) -> str | None:
    """How two base models relate, in a sentence; None where nothing was compared.

    Args:
        measures: by target path.
        options: of the migrations.
    """
    compared = {path: measure for path, measure in measures.items() if measure.sides is not None}
    return relation(compared, 0, options).sentence if compared else None
