"""What will be done with every module, decided before anything is computed on a device.

`build_plan` is pure. Every module of the adapter ends in a step (in several with `--match module`)
or in `skipped` with a reason; target modules that stay empty because the source has no block for
them are listed as skipped, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

import msgspec
import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.late import LateModule
from prolora_jax.architectures.clip.table import encoder_of, is_text_encoder
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import place_of
from prolora_jax.matching.alignment import Alignment
from prolora_jax.matching.matching import MatchedBy, Matching
from prolora_jax.plans.companions import PlannedCompanion
from prolora_jax.plans.nearness import (
    CLOSE_WEIGHTS,
    PACKED_TWIN,
    twins_are_copied,
    weights_may_decide,
)
from prolora_jax.plans.options import MigrationOptions

WEAK_SIMILARITY = 0.5
"""A module that passes on phi with a chance-corrected similarity below this is flagged."""

UNVERIFIED_TEXT_ENCODER = "unverified: text encoder absent"
"""Flag of a text encoder's module, copied because both base models name the same encoder."""


BY_TOKEN = "by-token"
"""Flag of an embedding or head that was copied row by row, each to where its token is."""


SLICED = "sliced"
"""Flag of a module that was copied in some of its rows and columns: those that the target's has."""


class Skip(StrEnum):
    """Why a module gets no adapter. Values are stable."""

    BELOW_THRESHOLD = "below-threshold"
    REMOVED_IN_TARGET = "removed-in-target"
    NO_SOURCE_BLOCK = "no-source-block"
    SHAPE_MISMATCH = "shape-mismatch"
    TEXT_ENCODER = "text-encoder-absent"
    ZERO_DELTA = "zero-delta"
    EXCLUDED = "excluded"
    NOTHING_LEFT = "nothing-left"


class Action(StrEnum):
    """What is done with a module that moves."""

    PROJECT = "project"
    COPY = "copy"


@dataclass(frozen=True)
class ModuleSimilarity:
    """Similarity of a source and a target weight (docs/method.md 3).

    `phi_hat_*` is corrected for chance and None where both spans are everything.
    """

    phi_left: float
    phi_right: float
    phi_hat_left: float | None
    phi_hat_right: float | None
    k_source: int
    k_target: int

    def passes(self, options: MigrationOptions) -> bool:
        """Whether the gate lets the module through."""
        left, right = self.phi_left, self.phi_right
        if options.gate == "corrected":
            # No information (both spans are everything) lets the module pass.
            left = 1.0 if self.phi_hat_left is None else self.phi_hat_left
            right = 1.0 if self.phi_hat_right is None else self.phi_hat_right
        deciding = left if options.gate_sides == "left" else min(left, right)
        return deciding >= options.min_similarity


@dataclass(frozen=True)
class Measure:
    """What is known of one pair of weights before planning.

    Attributes:
        identical: the two weights are equal.
        similarity: None when it was not needed (identical weights, or `copy`).
        flags: `clustered-cut`, when the span at a cut depends on the rounding of the weight.
        close: the weights are so close that they were not compared further (`nearness`).
        twin: the weights are one but for how they are packed, and were not compared further.
        sliced: the target's weight is some of the source's rows and columns.
        by_token: rows of the layer stand for tokens, and have other numbers in the target.
    """

    identical: bool = False
    similarity: ModuleSimilarity | None = None
    flags: tuple[str, ...] = ()
    close: bool = False
    twin: bool = False
    by_token: bool = False
    sliced: bool = False

    @property
    def sides(self) -> tuple[float, float] | None:
        """(phi left, phi right); 1 for identical weights, None when nothing was measured."""
        if self.similarity is not None:
            return self.similarity.phi_left, self.similarity.phi_right
        return (1.0, 1.0) if self.identical else None


@dataclass(frozen=True)
class PlanStep:
    """One target module that will get an adapter."""

    path: str
    source_path: str
    action: Action
    similarity: ModuleSimilarity | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class SkippedModule:
    """A module that gets no adapter: `source_path` of the adapter, or `path` of the target."""

    reason: Skip
    source_path: str | None
    path: str | None
    similarity: ModuleSimilarity | None = None


@dataclass(frozen=True)
class MigrationPlan:
    """Every step, every skipped module, and the alignments that led there.

    `packings` is number of weights by packing, of `source` and `target` where they are packed.
    """

    options: MigrationOptions
    source: str
    target: str
    steps: tuple[PlanStep, ...]
    skipped: tuple[SkippedModule, ...]
    alignments: tuple[Alignment, ...]
    matched_by: MatchedBy = "name"
    flags: tuple[str, ...] = ()
    companions: tuple[PlannedCompanion, ...] = ()
    packings: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The plan as JSON; `from_json` gives the same plan back."""
        return msgspec.json.format(msgspec.json.encode(self)).decode()

    @staticmethod
    def from_json(text: str) -> "MigrationPlan":
        """Read a plan that `to_json` wrote."""
        return msgspec.json.decode(text, type=MigrationPlan)


def wanted_pairs(adapter: Adapter, matching: Matching, options: MigrationOptions) -> dict[str, str]:
    """Source path by target path for the modules that may move: those to be measured."""
    modules = {m.path: m for m in adapter.modules if not _is_zero(m)}
    return {
        path: source_path
        for path, source_path in matching.pairs.items()
        if source_path in modules and not _excluded(path, options)
    }


def build_plan(
    adapter: Adapter,
    source: BaseModelSpec,
    target: BaseModelSpec,
    matching: Matching,
    measures: Mapping[str, Measure],
    options: MigrationOptions,
) -> MigrationPlan:
    """Decide what happens to each module.

    Args:
        adapter: resolved against `source`.
        source: the base model the adapter was trained on.
        target: the base model it moves to.
        matching: source path by target path.
        measures: by target path, for every pair of `wanted_pairs`.
        options: thresholds and choices.

    Returns:
        The plan; each adapter module is in exactly one step or one skipped record.
    """
    targets_of: dict[str, list[str]] = {}
    for path, source_path in matching.pairs.items():
        targets_of.setdefault(source_path, []).append(path)
    steps, skipped = [], []
    for module in adapter.modules:
        if module.path not in targets_of:
            outcome = _unmatched(module, source, target, matching, options)
            (steps if isinstance(outcome, PlanStep) else skipped).append(outcome)
        for path in targets_of.get(module.path, ()):
            reason = _reason_before_measuring(module, path, options)
            if reason is not None:
                skipped.append(SkippedModule(reason, module.path, path))
                continue
            weak, own = matching.is_weak(path), options.options_for(path)
            outcome = _decide(path, module.path, measures[path], own, weak_match=weak)
            (steps if isinstance(outcome, PlanStep) else skipped).append(outcome)
    skipped += _without_source(adapter, source, target, matching, options)
    return MigrationPlan(
        options,
        source.name,
        target.name,
        tuple(steps),
        tuple(skipped),
        matching.alignments,
        matching.matched_by,
        packings={
            side: dict(spec.packings)
            for side, spec in (("source", source), ("target", target))
            if spec.packings
        },
    )


def _unmatched(
    module: LoraModule,
    source: BaseModelSpec,
    target: BaseModelSpec,
    matching: Matching,
    options: MigrationOptions,
) -> PlanStep | SkippedModule:
    """A module of the adapter that no target module takes."""
    path = module.path
    if is_text_encoder(path) and not (path in source.modules and path in target.modules):
        encoder = encoder_of(source, path)
        if encoder is None or encoder != encoder_of(target, path):
            return SkippedModule(Skip.TEXT_ENCODER, path, None)
        reason = _reason_before_measuring(module, path, options)
        if reason is not None:
            return SkippedModule(reason, path, path)
        return PlanStep(path, path, Action.COPY, None, (UNVERIFIED_TEXT_ENCODER,))
    a, b = source.modules.get(path), target.modules.get(path)
    if b is not None and path not in matching.pairs and (a is None or a.shape != b.shape):
        return SkippedModule(Skip.SHAPE_MISMATCH, path, path)
    return SkippedModule(Skip.REMOVED_IN_TARGET, path, None)


def _reason_before_measuring(
    module: LoraModule, path: str, options: MigrationOptions
) -> Skip | None:
    if _excluded(path, options):
        return Skip.EXCLUDED
    return Skip.ZERO_DELTA if _is_zero(module) else None


def _decide(
    path: str, source_path: str, measure: Measure, options: MigrationOptions, weak_match: bool
) -> PlanStep | SkippedModule:
    flags = list(measure.flags) + (["weak-match"] if weak_match else [])
    if measure.sliced:
        return PlanStep(path, source_path, Action.COPY, None, (*flags, SLICED))
    if measure.by_token:
        return PlanStep(path, source_path, Action.COPY, None, (*flags, BY_TOKEN))
    if options.method == "copy":
        return PlanStep(path, source_path, Action.COPY, measure.similarity, tuple(flags))
    if measure.identical and options.identical == "copy":
        return PlanStep(path, source_path, Action.COPY, None, (*flags, "identical"))
    if measure.twin and twins_are_copied(options):
        return PlanStep(path, source_path, Action.COPY, None, (*flags, PACKED_TWIN))
    if measure.close and weights_may_decide(options):
        return PlanStep(path, source_path, Action.COPY, None, (*flags, CLOSE_WEIGHTS))
    similarity = measure.similarity
    if similarity is None:
        raise AssertionError(f"{path}: planned without a similarity")
    if not similarity.passes(options):
        if options.below == "skip":
            return SkippedModule(Skip.BELOW_THRESHOLD, source_path, path, similarity)
        return PlanStep(path, source_path, Action.COPY, similarity, (*flags, "below-threshold"))
    corrected = (similarity.phi_hat_left, similarity.phi_hat_right)
    if None in corrected:
        flags.append("uninformative")
    if any(value is not None and value < WEAK_SIMILARITY for value in corrected):
        flags.append("weak-similarity")
    return PlanStep(path, source_path, Action.PROJECT, similarity, tuple(flags))


def _without_source(
    adapter: Adapter,
    source: BaseModelSpec,
    target: BaseModelSpec,
    matching: Matching,
    options: MigrationOptions,
) -> list[SkippedModule]:
    """Modules in the target's stacks without a source, where the adapter trains their like.

    Their like: the same role of the other blocks of their slot, or, where the whole slot has no
    source, the same role of any part of that kind.
    """
    trained = {module.path for module in adapter.modules}
    kinds = {(p.kind, p.role) for path in trained if (p := place_of(path)) is not None}
    slots: dict[tuple[str, str], list[str]] = {}
    for path, source_path in matching.pairs.items():
        if (place := place_of(path)) is not None:
            slots.setdefault((place.home, place.role), []).append(source_path)
    found, fed = [], {*matching.pairs.values()}
    for path, module in target.modules.items():
        place = place_of(path)
        if place is None or path in matching.pairs or _excluded(path, options):
            continue
        named = source.modules.get(path)
        if named is not None and named.shape != module.shape and path not in fed:
            continue  # the adapter's module of this name is skipped for its shape
        siblings = slots.get((place.home, place.role))
        like = (place.kind, place.role) in kinds if siblings is None else trained & {*siblings}
        if like:
            found.append(SkippedModule(Skip.NO_SOURCE_BLOCK, None, path))
    return found


def _is_zero(module: LoraModule) -> bool:
    if module.made_from is not None and module.made_from.gains is not None:
        return False  # a magnitude changes the weight whatever BA is
    if isinstance(module, LateModule):
        return module.norm == 0.0
    return not (_has_numbers(module.up) and _has_numbers(module.down))


def _has_numbers(array: np.ndarray) -> bool:
    """As `array.any()`, which looks at every float16, but most often decided by the first row."""
    return bool(array[:1].any() or array.any())


def _excluded(path: str, options: MigrationOptions) -> bool:
    if options.include and not any(fnmatchcase(path, p) for p in options.include):
        return True
    return any(fnmatchcase(path, p) for p in options.exclude)
