"""What is asked of a refinement of language models: all that its numbers depend on."""

import hashlib
from dataclasses import asdict, dataclass

import msgspec

from prolora_jax.refine.bounds import require_within
from prolora_jax.refine.fitting import FROM_ZERO, RefineOptions
from prolora_jax.refine.teacher import Teacher

_BOUNDS = {
    "texts": (2, None),
    "tokens": (4, None),
    "steps": (1, None),
    "batch": (1, None),
    "micro_batch": (0, None),
    "top": (1, None),
    "at_once": (1, None),
}


@dataclass(frozen=True)
class LmRecipe:
    """How adapters of a pair of language models are refined.

    Attributes:
        texts: that each model writes; a student learns from those of the target and of the source
            with the adapter.
        tokens: of each text.
        teacher: `effect` adds what the adapter changes on the source to the target's logits;
            `absolute` says what the source with the adapter says.
        steps: of the student; None for 100, and 300 where nothing was copied.
        rate: Adam's highest learning rate.
        batch: texts of a step.
        micro_batch: of them that a device takes through the net at once; 0 for its whole share.
        top: tokens of each answer whose likelihood is learned; all others are one.
        at_once: texts that are written or asked at once, by all devices together: those of other
            numbers are other texts.
        temperature: of the writing.
        seed: of everything.
    """

    texts: int = 64
    tokens: int = 96
    teacher: Teacher = "effect"
    steps: int | None = None
    rate: float = 2e-3
    batch: int = 8
    micro_batch: int = 0
    top: int = 64
    at_once: int = 16
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self):
        require_within(self, _BOUNDS)

    def shares(self, devices: int) -> int:
        """Over how many devices texts are spread, of a step and of all else: each takes as many.

        Args:
            devices: that there are.

        Returns:
            At least one, whatever the batch.
        """
        unit = self.micro_batch or 1

        def evenly(n: int) -> bool:
            return self.batch % (n * unit) == 0 and self.at_once % n == 0

        return max(n for n in range(1, devices + 1) if n == 1 or evenly(n))

    def fit_for(self, *, from_zero: bool, devices: int = 1) -> RefineOptions:
        """How a student is fitted.

        Args:
            from_zero: whether nothing was copied.
            devices: of `shares`, that its texts are spread over.
        """
        steps = FROM_ZERO.steps if from_zero else RefineOptions.steps
        return RefineOptions(
            steps=steps if self.steps is None else self.steps,
            rate=FROM_ZERO.rate if from_zero else self.rate,
            batch=self.batch,
            micro_batch=self.micro_batch * devices,
            seed=self.seed,
        )

    def stamp(self, *content: object) -> str:
        """A digest of the recipe and of what it is for.

        Args:
            content: what identifies models and adapter.
        """
        return hashlib.sha256(msgspec.json.encode([asdict(self), *content])).hexdigest()


LM_BUDGETS: dict[str, dict[str, int]] = {
    "low": {"texts": 24, "steps": 50},
    "normal": {},
    "high": {"texts": 192, "steps": 200},
}
"""Texts that each model writes, and steps."""
