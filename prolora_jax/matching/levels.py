"""Alignment of two base models, stack by stack: the parts of a stack, then the stacks inside.

Scores are asked for only where shapes and order leave a choice: between SDXL and its children
that is inside few slots, between SD 1.5 and BK-SDM inside stages, between a language model and one
with fewer layers everywhere.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stack import Stack
from prolora_jax.architectures.stacks import Part, Roles, place_of, tree
from prolora_jax.matching.alignment import Alignment, Pairs, align, fitting_modules, only_alignment

Evidence = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""How alike modules are: (source paths, target paths), all of one role and shape ->
`(sources, targets, 3)`. The three numbers add up over modules, and the score of any set of pairs
is the first sum over the root of the product of the others: (dot, norm^2, norm^2) makes it the
cosine of the concatenated weights, (value, 1, 1) the mean of the values."""

RoleKey = tuple[tuple[str, ...], str, tuple[int, ...]]
"""Kind, role and shape: modules that have them in common could stand for each other."""


class Aligner:
    """Alignment of two base models from the outermost stacks down; collects what it decides on."""

    def __init__(self, source: BaseModelSpec, target: BaseModelSpec, evidence: Evidence):
        self._shapes = (
            {path: module.shape for path, module in source.modules.items()},
            {path: module.shape for path, module in target.modules.items()},
        )
        self._trees = tree(source.modules), tree(target.modules)
        self._evidence = evidence
        self._known: dict[tuple[str, str], np.ndarray] = {}
        self.alignments: list[Alignment] = []

    def pairs(self) -> dict[str, str]:
        """Source path by target path for everything that stands in a stack."""
        sources, targets = self._trees
        found: dict[str, str] = {}
        for component in (name for name in sources if name in targets):
            found |= self._part_pairs(sources[component], targets[component], keep=True)
        return found

    def _part_pairs(self, source: Part, target: Part, keep: bool = False) -> dict[str, str]:
        found = self._role_pairs(source.own, target.own)
        for stack in (stack for stack in source.stacks if stack in target.stacks):
            s, t = list(source.stacks[stack].values()), list(target.stacks[stack].values())
            pairs, margin = self._choose(stack, s, t)
            if keep:
                self._note(stack, source, target, pairs, margin)
            for i, j in pairs:
                found |= self._part_pairs(s[i], t[j], keep=keep)
        return found

    def _role_pairs(self, source: Roles, target: Roles) -> dict[str, str]:
        """Source path by target path of the modules with one role and shape."""
        return {
            path: source[role]
            for role, path in target.items()
            if role in source and self._shapes[0][source[role]] == self._shapes[1][path]
        }

    def _fit(self, source: Part, target: Part) -> int:
        """Number of modules of two parts that fit by role and shape."""
        count = len(self._role_pairs(source.own, target.own))
        for stack in (stack for stack in source.stacks if stack in target.stacks):
            s, t = list(source.stacks[stack].values()), list(target.stacks[stack].values())
            if stack.deep:  # counts once: how many there are is a matter of depth, not of shape
                count += self._fit(s[0], t[0])
            else:
                count += fitting_modules(self._fits(stack, s, t))
        return count

    def _fits(self, stack: Stack, sources: Sequence[Part], targets: Sequence[Part]) -> np.ndarray:
        """`_fit` of each with each; 0 where they are of two kinds."""
        kinds = [[_kind(stack, part) for part in parts] for parts in (sources, targets)]
        fits = [
            [self._fit(s, t) if a == b else 0 for t, b in zip(targets, kinds[1], strict=True)]
            for s, a in zip(sources, kinds[0], strict=True)
        ]
        return np.array(fits, dtype=np.int64)

    def _choose(
        self, stack: Stack, sources: Sequence[Part], targets: Sequence[Part]
    ) -> tuple[Pairs, float | None]:
        fitting = self._fits(stack, sources, targets)
        only = only_alignment(fitting)
        if only is not None:
            return only, None
        self._gather(sources, targets)
        scores = np.zeros(fitting.shape)
        for i, j in zip(*np.nonzero(fitting), strict=True):
            scores[i, j] = self._score(self._part_pairs(sources[i], targets[j]))
        return align(scores, fitting)

    def _gather(self, sources: Sequence[Part], targets: Sequence[Part]) -> None:
        """Ask for all evidence between two lists at once, role by role: weights are read once."""
        groups: dict[RoleKey, tuple[list[str], list[str]]] = {}
        for side, parts in enumerate((sources, targets)):
            for path in (path for part in parts for path in part.paths()):
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
        self, stack: Stack, source: Part, target: Part, pairs: Pairs, margin: float | None
    ) -> None:
        s, t = list(source.stacks[stack]), list(target.stacks[stack])
        if not stack.deep and s == t and margin is None:
            return  # nothing to tell: every stage, every slot keeps its place
        found = tuple((s[i], t[j]) for i, j in pairs)
        # A slot has blocks of one kind, and is known by its own name.
        inside = "" if stack.level == "blocks" else f".{stack.name}"
        origin = None if source.path == target.path else source.path + inside
        slot = target.path + inside
        self.alignments.append(Alignment(slot, len(s), len(t), found, margin, stack.level, origin))


def _kind(stack: Stack, part: Part) -> tuple[bool, ...]:
    """Which of the roles that tell kinds of parts apart a part has."""
    return tuple(any(role.startswith(start) for role in part.own) for start in stack.apart)


def score(evidence: np.ndarray) -> float:
    """The score of summed evidence: see `Evidence`; 0 where there is none."""
    size = float(np.sqrt(evidence[1] * evidence[2]))
    return float(evidence[0]) / size if size > 0.0 else 0.0


def role_key(path: str, shape: tuple[int, ...]) -> RoleKey:
    """What a module in a stack has in common with those that could stand for it."""
    place = place_of(path)
    if place is None:
        raise AssertionError(f"{path}: not in a stack")
    return place.kind, place.role, shape
