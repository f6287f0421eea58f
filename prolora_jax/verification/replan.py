"""What should be done with every module, from names, shapes, patterns and both base models.

`matching` and `plans` are pure functions of names and scores and are used as they are; every
score, similarity, rank and equality that they are given is computed here, densely in float64.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prolora_jax.matching.alignment import WEAK_MARGIN, Alignment
from prolora_jax.matching.base_models import first_parts, match_base_models
from prolora_jax.matching.matching import Matching
from prolora_jax.matching.slices import Slice, with_slices
from prolora_jax.matching.tokens import TokenMap, with_token_layers
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Measure, ModuleSimilarity
from prolora_jax.verification.claim import Claim
from prolora_jax.verification.dense import DenseResult
from prolora_jax.verification.evidence import cosine_evidence, similarity_evidence
from prolora_jax.verification.slices import slices_of
from prolora_jax.verification.weights import Weights, identical

PHI_SLACK = 1e-5
"""Subspaces are stored in float32: the package's similarity may differ by about 1e-7."""

MARGIN_SLACK = 1e-4
"""The package sums up cosines in float32, over as many as 1e7 numbers and some ten modules."""

TIE = 1e-5
"""Alignments whose scores differ by less are equal as far as float32 tells."""

CLUSTERED = "clustered-cut"
CLUSTERED_ANGLE = 0.1
"""A cut that float16's rounding turns by more (radians) is `clustered-cut` (docs/method.md 2)."""


@dataclass(frozen=True)
class Matched:
    """Which source module feeds which target module.

    Attributes:
        matching: with the report's choice where two alignments are equally good.
        tied: target modules that such a choice decides on.
        barely: target modules whose `weak-match` depends on rounding.
        tokens: of both base models, where they are known.
        slices: rows and columns of the source, by trained module of the target that is one.
    """

    matching: Matching
    tied: frozenset[str]
    barely: frozenset[str]
    tokens: TokenMap | None = None
    slices: Mapping[str, Slice] = field(default_factory=dict)


def match(
    source: Weights,
    target: Weights,
    options: MigrationOptions,
    claim: Claim,
    tokens: TokenMap | None,
    trained: Collection[str],
) -> Matched:
    """Match modules anew.

    Args:
        source: source base model.
        target: target base model.
        options: how modules are matched.
        claim: asked only where two alignments are equally good.
        tokens: of both base models, where they are known and the input has rows of some.
        trained: modules of the input.
    """

    def evidence(sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        if options.match_score == "cosine":
            return cosine_evidence(source, target, sources, targets)
        return similarity_evidence(source, target, sources, targets, options)

    specs = source.spec, target.spec
    matching = match_base_models(*specs, evidence, options.match)
    margins = {a: a.margin for a in matching.alignments if a.margin is not None}
    tied = _hanging(target, [a for a, margin in margins.items() if margin < TIE])
    near = [a for a, margin in margins.items() if abs(margin - WEAK_MARGIN) <= MARGIN_SLACK]
    if tied:
        told = {record.path: record.source_path for record in claim.records.values()}
        chosen = {path: told[path] for path in tied if told.get(path) in source.spec.modules}
        shapes = {path: module.shape for path, module in source.spec.modules.items()}
        alike = {
            path: source_path
            for path, source_path in chosen.items()
            if source_path is not None and shapes[source_path] == target.spec.modules[path].shape
        }
        matching = replace(matching, pairs={**matching.pairs, **alike})
    if tokens is not None:
        matching = with_token_layers(matching, *specs)
    found = slices_of(source, target, matching, trained)
    slices = {} if found is None else found.slices
    if found is not None:
        matching = with_slices(found.matching, found.sources, target.spec)
    return Matched(matching, tied, _hanging(target, near), tokens, slices)


def _hanging(target: Weights, alignments: Sequence[Alignment]) -> frozenset[str]:
    """Target modules whose source hangs on one of these alignments."""
    hanging = tuple(replace(a, margin=0.0) for a in alignments)
    weak = Matching({}, hanging, parts=first_parts(target.spec))
    return frozenset(path for path in target.spec.modules if alignments and weak.is_weak(path))


def alignment_problems(told: Sequence[Alignment], matched: Matched) -> list[str]:
    """What of the report's alignments is not as recomputed."""
    ours, theirs = ({a.slot: a for a in found} for found in (matched.matching.alignments, told))
    problems = [f"{slot}: the report has no alignment of it" for slot in ours.keys() - theirs]
    problems += [f"{slot}: aligned by the report for no reason" for slot in theirs.keys() - ours]
    if len(theirs) < len(told):
        problems.append("alignments: the report has one place twice")
    for slot in ours.keys() & theirs.keys():
        a, b = ours[slot], theirs[slot]
        if a.margin is None or b.margin is None:
            same = a.margin == b.margin
        else:
            same = abs(a.margin - b.margin) <= MARGIN_SLACK
        tied = a.margin is not None and a.margin < TIE
        b = replace(b, margin=a.margin, pairs=a.pairs if tied else b.pairs)
        if not same or a != b:
            problems.append(
                f"{slot}: the report aligns it as {_said(theirs[slot])}; recomputed {_said(a)}"
            )
    return sorted(problems)


def _said(a: Alignment) -> str:
    pairs = ", ".join(f"{i}->{j}" for i, j in a.pairs)
    place = "" if a.source_slot is None else f" from {a.source_slot}"
    return f"{a.source_blocks} {a.level} to {a.target_blocks}{place}: {pairs}; margin {a.margin}"


def copied(
    source: Weights, target: Weights, options: MigrationOptions, source_path: str, path: str
) -> Measure | None:
    """What is known of a pair whose update is copied unseen; None where weights decide."""
    if options.options_for(path).method == "copy":
        return Measure()
    equal = options.identical == "copy" and identical(source, target, source_path, path)
    return Measure(identical=True) if equal else None


def measured(told: ModuleSimilarity | None, dense: DenseResult) -> Measure:
    """What a plan is decided on: the report's similarity where it is right, else ours.

    So a gate that a similarity hits to the last digit opens as it did for the report.

    Args:
        told: the report's similarity, if it has one.
        dense: the recomputation.
    """
    ours = ModuleSimilarity(
        min(dense.phi_left, 1.0),
        min(dense.phi_right, 1.0),
        _corrected(dense.phi_left, dense.chance_left),
        _corrected(dense.phi_right, dense.chance_right),
        dense.k_source,
        dense.k_target,
    )
    flags = (CLUSTERED,) if dense.angle[0] > CLUSTERED_ANGLE else ()
    right = told is not None and _is_right(told, dense)
    return Measure(similarity=told if right else ours, flags=flags)


def loose_flags(dense: DenseResult | None, path: str, matched: Matched) -> frozenset[str]:
    """Flags of a module that rounding decides on."""
    found = {"weak-match"} if path in matched.barely else set()
    if dense is not None and dense.angle[0] <= CLUSTERED_ANGLE < dense.angle[1]:
        found.add(CLUSTERED)
    return frozenset(found)


def _is_right(told: ModuleSimilarity, dense: DenseResult) -> bool:
    if (told.k_source, told.k_target) != (dense.k_source, dense.k_target):
        return False
    sides = (
        (told.phi_left, told.phi_hat_left, dense.phi_left, dense.chance_left),
        (told.phi_right, told.phi_hat_right, dense.phi_right, dense.chance_right),
    )
    return all(_side_is_right(*side, dense.undetermined) for side in sides)


def _side_is_right(
    phi: float, phi_hat: float | None, ours: float, chance: float, undetermined: bool
) -> bool:
    # Between equal singular values any similarity is possible, but not any correction of it.
    near = 0.0 <= phi <= 1.0 if undetermined else abs(phi - ours) <= PHI_SLACK
    hat = _corrected(phi, chance)
    if hat is None or phi_hat is None:
        return near and hat is phi_hat
    return near and abs(phi_hat - hat) <= PHI_SLACK / (1.0 - chance)


def _corrected(phi: float, chance: float) -> float | None:
    return None if chance >= 1.0 else (min(phi, 1.0) - chance) / (1.0 - chance)
