"""Alignment of two UNets, level by level: stages, the slots of a stage, the blocks of a slot.

Scores are asked for only where shapes and order leave a choice: between SDXL and its children
that is inside few slots, between SD 1.5 and BK-SDM inside stages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.places import DIRECTIONS, Roles, Slot, Stage, place_of, tree
from prolora_jax.matching.alignment import Alignment, Pairs, align, fitting_modules, only_alignment

Evidence = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""How alike modules are: (source paths, target paths), all of one role and shape ->
`(sources, targets, 3)`. The three numbers add up over modules, and the score of any set of pairs
is the first sum over the root of the product of the others: (dot, norm^2, norm^2) makes it the
cosine of the concatenated weights, (value, 1, 1) the mean of the values."""

RoleKey = tuple[str, str, tuple[int, ...]]
"""Kind, role and shape: modules that have them in common could stand for each other."""

_T = TypeVar("_T")


class Aligner:
    """Alignment of two UNets from the stages down; collects the alignments it decides on."""

    def __init__(self, source: BaseModelSpec, target: BaseModelSpec, evidence: Evidence):
        self._shapes = (
            {path: module.shape for path, module in source.modules.items()},
            {path: module.shape for path, module in target.modules.items()},
        )
        self._trees = tree(source), tree(target)
        self._evidence = evidence
        self._known: dict[tuple[str, str], np.ndarray] = {}
        self.alignments: list[Alignment] = []

    def pairs(self) -> dict[str, str]:
        """Source path by target path for everything that stands in a stage."""
        found: dict[str, str] = {}
        for direction in DIRECTIONS:
            found |= self._direction(direction)
        return found

    def _direction(self, direction: str) -> dict[str, str]:
        sources, targets = (t.get(direction, {}) for t in self._trees)
        s, t = list(sources.values()), list(targets.values())
        if not s or not t:
            return {}
        fitting = _table(s, t, self._stage_fit)
        pairs, margin = self._choose(fitting, s, t, self._stage_pairs)
        self._note("stages", f"{UNET}{direction}", (list(sources), list(targets)), pairs, margin)
        found: dict[str, str] = {}
        for i, j in pairs:
            found |= self._stage_pairs(s[i], t[j], keep=True)
        return found

    def _stage_pairs(self, source: Stage, target: Stage, keep: bool = False) -> dict[str, str]:
        found: dict[str, str] = {}
        for kind in sorted(source.kinds.keys() & target.kinds.keys()):
            s, t = list(source.kinds[kind].values()), list(target.kinds[kind].values())
            fitting = _table(s, t, self._slot_fit)
            pairs, margin = self._choose(fitting, s, t, self._slot_pairs)
            if keep:
                places = f"{target.path}.{kind}", f"{source.path}.{kind}"
                numbers = list(source.kinds[kind]), list(target.kinds[kind])
                self._note("slots", places[0], numbers, pairs, margin, places[1])
            for i, j in pairs:
                found |= self._slot_pairs(s[i], t[j], keep=keep)
        return found

    def _slot_pairs(self, source: Slot, target: Slot, keep: bool = False) -> dict[str, str]:
        found = self._role_pairs(source.own, target.own)
        s, t = list(source.blocks.values()), list(target.blocks.values())
        if s and t:
            fitting = _table(s, t, self._fit)
            pairs, margin = self._choose(fitting, s, t, self._role_pairs)
            if keep:
                numbers = list(source.blocks), list(target.blocks)
                self._note("blocks", target.path, numbers, pairs, margin, source.path)
            for i, j in pairs:
                found |= self._role_pairs(s[i], t[j])
        return found

    def _role_pairs(self, source: Roles, target: Roles) -> dict[str, str]:
        """Source path by target path of the modules with one role and shape."""
        return {
            path: source[role]
            for role, path in target.items()
            if role in source and self._shapes[0][source[role]] == self._shapes[1][path]
        }

    def _fit(self, source: Roles, target: Roles) -> int:
        return len(self._role_pairs(source, target))

    def _slot_fit(self, source: Slot, target: Slot) -> int:
        # Blocks count once: how many there are is a matter of depth, not of shape.
        s, t = list(source.blocks.values())[:1], list(target.blocks.values())[:1]
        own = self._fit(source.own, target.own)
        return own + sum(self._fit(a, b) for a, b in zip(s, t, strict=False))

    def _stage_fit(self, source: Stage, target: Stage) -> int:
        kinds = source.kinds.keys() & target.kinds.keys()
        slots = ((source.kinds[k].values(), target.kinds[k].values()) for k in kinds)
        return sum(fitting_modules(_table(list(s), list(t), self._slot_fit)) for s, t in slots)

    def _choose(
        self,
        fitting: np.ndarray,
        sources: list[_T],
        targets: list[_T],
        pairs_of: Callable[[_T, _T], dict[str, str]],
    ) -> tuple[Pairs, float | None]:
        only = only_alignment(fitting)
        if only is not None:
            return only, None
        self._gather(sources, targets)
        scores = np.zeros(fitting.shape)
        for i, j in zip(*np.nonzero(fitting), strict=True):
            scores[i, j] = self._score(pairs_of(sources[i], targets[j]))
        return align(scores, fitting)

    def _gather(self, sources: Sequence[object], targets: Sequence[object]) -> None:
        """Ask for all evidence between two lists at once, role by role: weights are read once."""
        groups: dict[RoleKey, tuple[list[str], list[str]]] = {}
        for side, members in enumerate((sources, targets)):
            for path in (path for member in members for path in _paths_of(member)):
                key = role_key(path, self._shapes[side][path])
                groups.setdefault(key, ([], []))[side].append(path)
        for s, t in groups.values():
            if not s or not t or all((a, b) in self._known for a in s for b in t):
                continue
            table = np.asarray(self._evidence(s, t), dtype=np.float64)
            self._known |= {(a, b): table[i, j] for i, a in enumerate(s) for j, b in enumerate(t)}

    def _score(self, pairs: Mapping[str, str]) -> float:
        total = sum((self._known[source, path] for path, source in pairs.items()), np.zeros(3))
        return score(total)

    def _note(
        self,
        level: Literal["stages", "slots", "blocks"],
        slot: str,
        numbers: tuple[list[int], list[int]],
        pairs: Pairs,
        margin: float | None,
        source_slot: str | None = None,
    ) -> None:
        s, t = numbers
        if level != "blocks" and s == t and margin is None:
            return  # nothing to tell: every stage, every slot keeps its place
        found = tuple((s[i], t[j]) for i, j in pairs)
        origin = None if source_slot == slot else source_slot
        self.alignments.append(Alignment(slot, len(s), len(t), found, margin, level, origin))


def score(evidence: np.ndarray) -> float:
    """The score of summed evidence: see `Evidence`; 0 where there is none."""
    size = float(np.sqrt(evidence[1] * evidence[2]))
    return float(evidence[0]) / size if size > 0.0 else 0.0


def role_key(path: str, shape: tuple[int, ...]) -> RoleKey:
    """What a module in a stage has in common with those that could stand for it."""
    place = place_of(path)
    if place is None:
        raise AssertionError(f"{path}: not in a stage")
    return place.kind, place.role, shape


def _paths_of(member: object) -> Iterator[str]:
    """Every module path in a block (`Roles`), a slot or a stage."""
    if isinstance(member, Stage):
        for slots in member.kinds.values():
            for slot in slots.values():
                yield from _paths_of(slot)
    elif isinstance(member, Slot):
        yield from member.own.values()
        for block in member.blocks.values():
            yield from block.values()
    elif isinstance(member, dict):
        yield from member.values()


def _table(sources: list[_T], targets: list[_T], fit: Callable[[_T, _T], int]) -> np.ndarray:
    return np.array([[fit(s, t) for t in targets] for s in sources], dtype=np.int64)
