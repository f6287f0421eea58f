"""What is asked of a refinement: all that its numbers depend on, beside models and adapter."""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Literal

import msgspec

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.refine import triggers
from prolora_jax.refine.bounds import (
    MOST_TIMES,
    latents_of,
    require_guidance,
    require_within,
)
from prolora_jax.refine.fitting import FROM_ZERO, RETEACH, RefineOptions
from prolora_jax.refine.guard import Way
from prolora_jax.refine.job.prompts import GENERIC
from prolora_jax.refine.teacher import Teacher

LATENTS_AT_ONCE = 128 * 128
"""Places of pictures that a device takes through a net at once: of one row at 1024 pixels, of four
at 512. What that needs is in docs/benchmarks.md."""
USUALLY_AT_ONCE = 4
"""Rows, at most, of small pictures that are drawn or asked at once."""
LATENTS_KEPT = 64 * 64
"""Above it, activations inside of blocks are computed again on the way back, not kept."""
_BOUNDS = {
    "rows": (2, None),
    "pictures": (2, None),
    "draw_steps": (1, MOST_TIMES),
    "at_once": (1, None),
    "noises": (1, None),
    "steps": (1, None),
    "batch": (1, None),
    "micro_batch": (0, None),
}
Kind = Literal["auto", "style", "concept"]
Budget = Literal["low", "normal", "high"]


@dataclass(frozen=True)
class RefineRecipe:
    """How adapters of one pair are refined.

    Attributes:
        prompts: what pools show; each adapter's own words come after them.
        kind: `auto` tells styles and concepts apart by their words.
        teacher: for what is refined, not retaught.
        rows: that a student sees, half of them pictures of the target.
        pictures: of a pool.
        draw_steps: of the samplers.
        guidance: of the pools; 1 for none.
        size: height and width in latents; None for what the target was trained on.
        seed: of everything.
        at_once: pictures or rows that a device draws or is asked at once, which changes no more
            than rounding does; None for what 16 GB are sure to hold, four at most.
        noises: that each word is tried on.
        steps: of the student; None for what its way asks for (100; 200 retaught; 300 from zero).
        batch: rows of a step.
        micro_batch: of them that a device takes through the net at once; 0 for its whole share,
            None for what 16 GB are sure to hold.
    """

    prompts: tuple[str, ...] = GENERIC
    kind: Kind = "auto"
    teacher: Teacher = "effect"
    rows: int = 512
    pictures: int = 128
    draw_steps: int = 25
    guidance: float = 1.0
    size: tuple[int, int] | None = None
    seed: int = 0
    at_once: int | None = None
    noises: int = triggers.NOISES
    steps: int | None = None
    batch: int = 32
    micro_batch: int | None = None

    def __post_init__(self):
        """Refuse what cannot be followed."""
        require_within(self, _BOUNDS)
        require_guidance(self.guidance)
        if not self.prompts:
            raise UsageError(
                "refine: found no prompts; expected at least one, of what pictures show; give a "
                "file of them, one in a line, or leave the option away",
                code=Refusal.BAD_OPTION,
            )
        RefineOptions(batch=self.batch, micro_batch=self.micro_batch or 0)

    def at_pixels(self, pixels: int | None, per_latent: int) -> "RefineRecipe":
        """The same with pictures of this height and width.

        Args:
            pixels: height and width; None for what the recipe has.
            per_latent: pixels of one latent.

        Raises:
            UsageError: it is no whole number of latents.
        """
        if pixels is None:
            return self
        side = latents_of(pixels, per_latent)
        return replace(self, size=(side, side))

    def asked_at_once(self, size: tuple[int, int]) -> int:
        """Pictures or rows that a device draws or is asked at once.

        Args:
            size: their height and width in latents.
        """
        most = max(1, LATENTS_AT_ONCE // (size[0] * size[1]))
        return self.at_once or min(USUALLY_AT_ONCE, most)

    def shares(self, devices: int) -> int:
        """Over how many devices the rows of a step are spread: each takes as many.

        Args:
            devices: that there are.

        Returns:
            At least one, whatever the batch.
        """
        unit = self.micro_batch or 1
        return max(n for n in range(1, devices + 1) if n == 1 or self.batch % (n * unit) == 0)

    def fit_for(
        self, way: Way, *, from_zero: bool, size: tuple[int, int], devices: int = 1
    ) -> RefineOptions:
        """How the student of one way is fitted.

        Args:
            way: `refine` or `reteach`.
            from_zero: whether nothing at all was copied.
            size: height and width of its rows in latents.
            devices: of `shares`, that its rows are spread over.
        """
        share = self.batch // devices
        micro = self.micro_batch or share
        if self.micro_batch is None:
            most = max(1, LATENTS_AT_ONCE // (size[0] * size[1]))
            micro = max(n for n in range(1, share + 1) if n <= most and share % n == 0)
        usual = RETEACH if way == "reteach" else RefineOptions()
        if from_zero:
            usual = FROM_ZERO
        return replace(
            usual,
            steps=usual.steps if self.steps is None else self.steps,
            batch=self.batch,
            micro_batch=micro * devices,
            seed=self.seed,
        )

    @staticmethod
    def computes_again(options: RefineOptions, size: tuple[int, int], devices: int) -> bool:
        """Whether activations are computed again on the way back, to save memory.

        Args:
            options: of `fit_for`.
            size: height and width of rows in latents.
            devices: that they are spread over.
        """
        places = options.batch // options.parts // devices * size[0] * size[1]
        return options.parts > 1 or places > LATENTS_KEPT

    def stamp(self, *content: object) -> str:
        """A digest of the recipe and of what it is for.

        Args:
            content: what identifies models and adapter.
        """
        asked = {k: v for k, v in asdict(self).items() if k != "at_once"}
        return hashlib.sha256(msgspec.json.encode([asked, *content])).hexdigest()


BUDGETS: dict[Budget, dict[str, int]] = {
    "low": {"pictures": 48, "rows": 256, "steps": 50},
    "normal": {},
    "high": {"pictures": 256, "rows": 1024, "steps": 200},
}
"""What is drawn, shown and fitted. In the trials 50 steps kept .9 of the gain of 100."""
