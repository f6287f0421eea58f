"""Which source module feeds which target module (docs/method.md 8).

A published correspondence: as published. Equal structure: names. Otherwise the stacks of a base
model are aligned from the outermost in (a UNet's stages, their slots, the slots' transformer
blocks; a language model's layers), each one-to-one and in order: as many pairs as possible, then as
many modules that fit by shape as possible, then the best score. Scores are
asked for only where shapes and order leave a choice. Pure: names, shapes and given evidence in, a
table of names out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import has_stacks, place_of
from prolora_jax.architectures.unet.stacks import BLOCK
from prolora_jax.matching.alignment import Alignment
from prolora_jax.matching.levels import Aligner, Evidence, RoleKey, role_key, score

MatchedBy = Literal["name", "published", "block", "module"]


@dataclass(frozen=True)
class Matching:
    """Source path by target path, and the alignments behind it.

    `parts` has a part for each target layer that is matched as its parts are.
    """

    pairs: Mapping[str, str]
    alignments: tuple[Alignment, ...] = ()
    matched_by: MatchedBy = "name"
    parts: Mapping[str, str] = field(default_factory=dict)

    def is_weak(self, path: str) -> bool:
        """Whether a target module's source hangs on an alignment that is flagged."""
        path = self.parts.get(path, path)
        return any(_hangs_on(path, alignment) for alignment in self.alignments if alignment.weak)


def _hangs_on(path: str, alignment: Alignment) -> bool:
    if alignment.level == "module":
        return path == alignment.slot
    return path.startswith(alignment.slot + (BLOCK if alignment.level == "blocks" else "."))


def same_structure(source: BaseModelSpec, target: BaseModelSpec) -> bool:
    """Whether both have the same modules with the same shapes, text encoders left aside."""
    a, b = (
        {path: module.shape for path, module in spec.modules.items() if has_stacks(path)}
        for spec in (source, target)
    )
    return a == b


def match_modules(
    source: BaseModelSpec,
    target: BaseModelSpec,
    evidence: Evidence,
    mode: Literal["auto", "name", "block", "module"] = "auto",
    published: Mapping[str, str] | None = None,
) -> Matching:
    """Match every target module that has a source module.

    Args:
        source: modules of the source base model.
        target: modules of the target base model.
        evidence: how alike modules are; asked only where shapes and order leave a choice.
        mode: `name`; `block` (alignment); `module` (for each target module the source module of
            its role and shape with the best score, not one-to-one); or `auto`: what is published,
            else `name` when both base models have the same structure, else `block`.
        published: source path by target path, where it is known how the target was made.

    Returns:
        The matching, in the order of the target's modules; only modules of equal shape are
        paired. Modules outside of stacks (`conv_in`, text encoders) keep their names.
    """
    by_name = {path: path for path in target.modules if _fits(source, target, path, path)}
    equal = mode == "auto" and published is None and same_structure(source, target)
    if mode == "name" or equal:
        return Matching(by_name)
    if mode == "module":
        return _match_each(source, target, evidence, by_name)
    outside = {path: path for path in by_name if place_of(path) is None}
    if mode == "auto" and published is not None:
        found = _in_order(source, target, outside | dict(published))
        return Matching(found, (), "published")
    aligner = Aligner(source, target, evidence)
    found = _in_order(source, target, outside | aligner.pairs())
    return Matching(found, tuple(aligner.alignments), "block")


def _in_order(
    source: BaseModelSpec, target: BaseModelSpec, found: Mapping[str, str]
) -> dict[str, str]:
    return {
        path: found[path]
        for path in target.modules
        if path in found and _fits(source, target, found[path], path)
    }


def _fits(source: BaseModelSpec, target: BaseModelSpec, source_path: str, path: str) -> bool:
    found = source.modules.get(source_path)
    return found is not None and found.shape == target.modules[path].shape


def _match_each(
    source: BaseModelSpec, target: BaseModelSpec, evidence: Evidence, by_name: Mapping[str, str]
) -> Matching:
    """For each module inside a stack the best-scored source module of its role and shape."""
    groups: dict[RoleKey, tuple[list[str], list[str]]] = {}
    for side, spec in enumerate((source, target)):
        for path, module in spec.modules.items():
            if place_of(path) is not None:
                key = role_key(path, module.shape)
                groups.setdefault(key, ([], []))[side].append(path)
    grouped = {path for _, targets in groups.values() for path in targets}
    found = {path: path for path in by_name if path not in grouped}
    alignments = {}
    for sources, targets in groups.values():
        if not sources or not targets:
            continue
        table = np.asarray(evidence(sources, targets), dtype=np.float64)
        for j, path in enumerate(targets):
            scores = np.array([score(row) for row in table[:, j]])
            best, *rest = np.argsort(-scores, kind="stable")
            found[path] = sources[best]
            margin = float(scores[best] - scores[rest[0]]) if rest else None
            origin = None if sources[best] == path else sources[best]
            alignments[path] = Alignment(
                path, len(sources), 1, ((int(best), 0),), margin, "module", origin
            )
    ordered = [path for path in target.modules if path in found]
    return Matching(
        {path: found[path] for path in ordered},
        tuple(alignments[path] for path in ordered if path in alignments),
        "module",
    )
