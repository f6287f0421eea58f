"""What a migration did, module by module, as JSON-able records."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from prolora_jax.adapters.adapter import Adapter, MadeFrom
from prolora_jax.adapters.algorithms.table import WRITTEN
from prolora_jax.adapters.formats.own_keys import HOLD_OWN
from prolora_jax.matching.alignment import Alignment
from prolora_jax.plans.companions import PlannedCompanion
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action, ModuleSimilarity, PlanStep, SkippedModule
from prolora_jax.plans.refined import Refined

IN_FLOAT32 = "in-float32"
"""Flag of a module that is written in float32: the dtype asked for does not hold its numbers."""

DORA_KEPT = "dora-kept"
"""Flag of a module that is written as DoRA: its BA moved, its magnitude was recomputed."""

OWN_TENSORS = "own-tensors"
"""Flag of a module of LoHa or LoKr that is written as it is; what the record says of rank, norm and
share is that of the LoRA factors that stand for it everywhere else."""

REFINED = "refined"
"""Flag of a module that was copied and then learned from samples: its numbers are the student's."""

OVER_BUDGET = "over-budget: "
"""Start of the flag of a file that one column of each module makes larger than `--rank budget=`."""

MADE_PLAIN = "made-plain-lora: "
"""Start of the flag of a file whose modules of LoHa and LoKr become plain LoRA, even where they are
copied: its format has no keys that are written for them. The algorithms follow."""


def made_plain(adapter: Adapter) -> tuple[str, ...]:
    """The flag of a file that comes out as another kind than it is; none where it does not.

    Args:
        adapter: the input, with LoRA factors.
    """
    if adapter.format in HOLD_OWN:
        return ()
    made = [m.made_from for m in adapter.modules if m.made_from is not None]
    names = sorted({one.algorithm for one in made if one.own is None} & WRITTEN)
    return (f"{MADE_PLAIN}{', '.join(names)}",) if names else ()


def over_budget(spent: float, budget: float) -> tuple[str, ...]:
    """The flag of a file whose columns cost more than they should; none where they do not."""
    return (f"{OVER_BUDGET}{spent:.0f} bytes",) if spent > budget else ()


@dataclass(frozen=True)
class ModuleReport:
    """One module of the output.

    Norms are Frobenius norms of the update; energies are shares of `norm_in` squared in the four
    blocks of docs/method.md 7 (source spans, left then right: along/across), None for copies.

    Attributes:
        path: module of the target.
        source_path: module of the source whose adapter it got.
        action: `project` or `copy`.
        phi_left: similarity of the out-side spans; None when it was not computed.
        phi_right: the same on the in side.
        phi_hat_left: corrected for chance; None also where both spans are everything.
        phi_hat_right: the same on the in side.
        k_source: retained rank of the source weight.
        k_target: retained rank of the target weight.
        rank_in: rank in the input file.
        rank_out: rank in the output file, before zero-padding to a uniform rank.
        norm_in: norm of the input's update.
        norm_out: norm of the output's update, before it is rounded to the output's dtype.
        kept: share of the projected update's squared norm kept by `--rank`.
        energies: along-along, along-across, across-along, across-across.
        still_left: principal directions that `rotation` left still on the out side.
        still_right: the same on the in side.
        flags: see docs/method.md 3; of a module that is `dora-kept` norms and energies are BA's.
        algorithm: of the input's module, where it is no plain LoRA; None for plain LoRA.
        factored: share of the squared norm of its update that its LoRA factors hold, `norm_in`
            squared being what they hold.
    """

    path: str
    source_path: str
    action: Action
    phi_left: float | None
    phi_right: float | None
    phi_hat_left: float | None
    phi_hat_right: float | None
    k_source: int | None
    k_target: int | None
    rank_in: int
    rank_out: int
    norm_in: float
    norm_out: float
    kept: float
    energies: tuple[float, float, float, float] | None = None
    still_left: int | None = None
    still_right: int | None = None
    flags: tuple[str, ...] = ()
    algorithm: str | None = None
    factored: float | None = None

    @property
    def similarity(self) -> ModuleSimilarity | None:
        """What it says of the two weights; None when it says nothing, or not all of it."""
        sides = self.phi_left, self.phi_right
        ranks = self.k_source, self.k_target
        if None in sides or None in ranks:
            return None
        hats = self.phi_hat_left, self.phi_hat_right
        return ModuleSimilarity(*sides, *hats, *ranks)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def of(
        step: PlanStep,
        ranks: tuple[int, int],
        norms: tuple[float, float],
        kept: float = 1.0,
        energies: tuple[float, float, float, float] | None = None,
        still: tuple[int, int] | None = None,
        made_from: MadeFrom | None = None,
        in_float32: bool = False,
    ) -> "ModuleReport":
        """What became of a step of a plan.

        Args:
            step: it.
            ranks: in and out.
            norms: of the update, in and out.
            kept: share of the squared norm that `--rank` kept.
            energies: of the four blocks.
            still: left and right.
            made_from: the other algorithm that the factors were made from.
            in_float32: whether the dtype asked for does not hold its numbers.
        """
        s, found = step.similarity, (IN_FLOAT32,) if in_float32 else ()
        if made_from is not None and made_from.gains is not None:
            found = (*found, DORA_KEPT)
        return ModuleReport(
            path=step.path,
            source_path=step.source_path,
            action=step.action,
            phi_left=s and s.phi_left,
            phi_right=s and s.phi_right,
            phi_hat_left=s and s.phi_hat_left,
            phi_hat_right=s and s.phi_hat_right,
            k_source=s and s.k_source,
            k_target=s and s.k_target,
            rank_in=ranks[0],
            rank_out=ranks[1],
            norm_in=norms[0],
            norm_out=norms[1],
            kept=kept,
            energies=energies,
            still_left=still and still[0],
            still_right=still and still[1],
            flags=(*step.flags, *found),
            algorithm=made_from and made_from.algorithm,
            factored=made_from and made_from.kept,
        )


@dataclass(frozen=True)
class Party:
    """A source, a target or an input: where it is and what identifies its content.

    `packings` is number of weights by packing; `notes` are what to know of that, in sentences.
    """

    location: str
    fingerprint: str
    packings: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergedPart:
    """One of several adapters that were migrated as one: where, what, and how strong."""

    location: str
    fingerprint: str
    weight: float


@dataclass(frozen=True)
class MigrationReport:
    """Everything about one migrated adapter; written beside it as `.report.json`.

    `flags` concern the file as a whole: `assumed-base: ID`, `ambiguous-base: ID, ID`,
    `idle-rule: N`, `in-parts: N layers, ...`, `fused-ranks: N layers, ...`. `parts` are what the
    input was put together from (`--merge`), none for a single file. `companions` are the tensors
    beside the pairs: what became of each, and its share of the update. Which options a module has,
    `options.options_for(path)` says. `refined` says what `prolora refine` did after the copy.
    `method` is `auto` where `--method auto` chose between the two, and `decided` says what and why;
    `options` are then those of the copy.
    """

    prolora_version: str
    options: MigrationOptions
    source: Party
    target: Party
    input: Party
    modules: tuple[ModuleReport, ...]
    skipped: tuple[SkippedModule, ...]
    alignments: tuple[Alignment, ...]
    carried: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    parts: tuple[MergedPart, ...] = ()
    companions: tuple[PlannedCompanion, ...] = ()
    refined: Refined | None = None
    method: Literal["auto"] | None = None
    decided: str | None = None

    def to_json(self) -> str:
        """The report as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self)).decode()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers."""
        return msgspec.to_builtins(self)


def count(modules: tuple[ModuleReport, ...], skipped: tuple[SkippedModule, ...]) -> dict[str, int]:
    """Number of modules by what became of them: project, copy, and each skip reason."""
    found = Counter(str(m.action) for m in modules)
    found.update(str(s.reason) for s in skipped)
    return dict(sorted(found.items()))
