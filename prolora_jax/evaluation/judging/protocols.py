"""How the paper measured, and what it found.

Source: ProLoRA (ICML 2025), section 4 and its tables; DreamBooth (arXiv 2208.12242), section 4, has
the prompts of the second. The numbers are those of the paper's own base models, adapters and
prompts.
"""

from dataclasses import dataclass, field
from typing import Literal

Protocol = Literal["paper-style", "paper-concept"]


@dataclass(frozen=True)
class Published:
    """A row of a table of the paper.

    Attributes:
        case: adapter and target.
        arm: the same way to get an adapter, by our name.
        values: by metric; HPS of version 2, whose weights the paper does not name more closely.
    """

    case: str
    arm: str
    values: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """What a protocol sets where nobody says otherwise.

    Attributes:
        seeds: of each prompt.
        metrics: to be measured.
        published: rows of the paper.
    """

    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    published: tuple[Published, ...] = field(default_factory=tuple)


PLANS: dict[Protocol, Plan] = {
    "paper-style": Plan(
        seeds=tuple(range(30)),
        metrics=("hps", "csd-mmd"),
        published=(
            Published("BlueFire, SDXL to SSD-1B", "trained", {"hps": 0.323}),
            Published("BlueFire, SDXL to SSD-1B", "prolora", {"hps": 0.318, "csd-mmd": 0.021}),
            Published("Paintings, SDXL to SSD-1B", "trained", {"hps": 0.328}),
            Published("Paintings, SDXL to SSD-1B", "prolora", {"hps": 0.318, "csd-mmd": 0.013}),
            Published("Origami, SD 1.5 to SD Eff-v1.0", "trained", {"hps": 0.253}),
            Published(
                "Origami, SD 1.5 to SD Eff-v1.0", "prolora", {"hps": 0.257, "csd-mmd": 0.003}
            ),
        ),
    ),
    "paper-concept": Plan(
        seeds=tuple(range(4)),
        metrics=("clip-t", "clip-i", "dino"),
        published=tuple(
            Published(
                "DreamBooth, SDXL to SSD-1B",
                arm,
                dict(zip(("clip-t", "clip-i", "dino"), found, strict=True)),
            )
            for arm, found in (
                ("none", (0.251, 0.521, 0.352)),
                ("copy", (0.300, 0.719, 0.475)),
                ("prolora", (0.287, 0.737, 0.501)),
                ("trained", (0.294, 0.745, 0.539)),
            )
        ),
    ),
}
"""BlueFire was drawn from 30 prompts, Paintings from 21, concepts from 25: users bring theirs."""
