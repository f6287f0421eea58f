"""Which source module feeds which target module (method.md 5).

Equal structure: names. Otherwise modules outside transformer blocks keep their name, and the
transformer blocks of each slot (`down_blocks.2.attentions.0`) are aligned: one-to-one, in order,
the shorter side fully used, the sum of given scores as large as it can be. Pure: names, shapes
and a table of scores in, a table of names out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from prolora_jax.architectures.spec import BaseModelSpec

BLOCK = ".transformer_blocks."
WEAK_MARGIN = 0.05
"""Below this margin an alignment is flagged `weak-match`: the runner-up is almost as good."""


@dataclass(frozen=True)
class Alignment:
    """How the transformer blocks of one slot were paired.

    Attributes:
        slot: path of the slot.
        source_blocks: number of blocks in the source.
        target_blocks: number of blocks in the target.
        pairs: (source index, target index), ascending in both.
        margin: summed score of the best alignment minus that of the runner-up; None when there
            is only one alignment.
    """

    slot: str
    source_blocks: int
    target_blocks: int
    pairs: tuple[tuple[int, int], ...]
    margin: float | None

    @property
    def weak(self) -> bool:
        """Whether another alignment is almost as good."""
        return self.margin is not None and self.margin < WEAK_MARGIN


@dataclass(frozen=True)
class Matching:
    """Source path by target path, and the alignments behind it."""

    pairs: Mapping[str, str]
    alignments: tuple[Alignment, ...] = ()

    def weak_slots(self) -> frozenset[str]:
        """Slots whose alignment is flagged `weak-match`."""
        return frozenset(a.slot for a in self.alignments if a.weak)


def split_block(path: str) -> tuple[str, int, str] | None:
    """(slot, block index, role) of a path inside a transformer block, else None."""
    slot, found, rest = path.partition(BLOCK)
    if not found:
        return None
    index, _, role = rest.partition(".")
    return slot, int(index), role


def blocks_of(spec: BaseModelSpec) -> dict[str, dict[int, dict[str, tuple[int, ...]]]]:
    """Shapes by slot, block index and role."""
    slots: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for path, module in spec.modules.items():
        split = split_block(path)
        if split is not None:
            slot, index, role = split
            slots.setdefault(slot, {}).setdefault(index, {})[role] = module.shape
    return slots


def same_structure(source: BaseModelSpec, target: BaseModelSpec) -> bool:
    """Whether both bases have the same modules with the same shapes."""
    return {p: m.shape for p, m in source.modules.items()} == {
        p: m.shape for p, m in target.modules.items()
    }


def align(scores: np.ndarray) -> tuple[tuple[tuple[int, int], ...], float | None]:
    """Best monotone one-to-one alignment by dynamic programming.

    Args:
        scores: `(source blocks, target blocks)`; `-inf` forbids a pair.

    Returns:
        The pairs (source index, target index), `min(scores.shape)` of them, and the margin to
        the runner-up (None when there is no other alignment). No pairs when every complete
        alignment is forbidden.
    """
    total, pairs = _best(scores)
    if not np.isfinite(total):
        return (), None
    runners_up = []
    for i, j in pairs:
        without = scores.copy()
        without[i, j] = -np.inf
        runners_up.append(_best(without)[0])
    second = max(runners_up, default=-np.inf)
    return pairs, (float(total - second) if np.isfinite(second) else None)


def _best(scores: np.ndarray) -> tuple[float, tuple[tuple[int, int], ...]]:
    if scores.shape[0] < scores.shape[1]:
        total, pairs = _best(scores.T)
        return total, tuple((i, j) for j, i in pairs)
    longer, shorter = scores.shape
    # table[i, j]: best sum with the first i of the longer and all of the first j of the shorter
    table = np.full((longer + 1, shorter + 1), -np.inf)
    table[:, 0] = 0.0
    for i in range(1, longer + 1):
        for j in range(1, min(i, shorter) + 1):
            table[i, j] = max(table[i - 1, j], table[i - 1, j - 1] + scores[i - 1, j - 1])
    pairs, i, j = [], longer, shorter
    while j and np.isfinite(table[i, j]):
        if table[i, j] != table[i - 1, j]:
            pairs.append((i - 1, j - 1))
            j -= 1
        i -= 1
    return float(table[longer, shorter]), tuple(reversed(pairs))


def match_modules(
    source: BaseModelSpec,
    target: BaseModelSpec,
    score_slot: Callable[[str], np.ndarray],
    mode: str = "auto",
) -> Matching:
    """Match every target module that has a source module.

    Args:
        source: modules of the source base.
        target: modules of the target base.
        score_slot: scores `(source blocks, target blocks)` of a slot that both bases have with
            different numbers of blocks; called only for those.
        mode: `name`, `block`, or `auto` (`name` when both have the same structure).

    Returns:
        The matching; only modules of equal shape are paired.
    """

    def equal(target_path: str, source_path: str) -> bool:
        found = source.modules.get(source_path)
        return found is not None and found.shape == target.modules[target_path].shape

    if mode == "name" or (mode == "auto" and same_structure(source, target)):
        return Matching({path: path for path in target.modules if equal(path, path)})
    pairs = {
        path: path for path in target.modules if split_block(path) is None and equal(path, path)
    }
    source_slots, target_slots = blocks_of(source), blocks_of(target)
    alignments = []
    for slot, blocks in target_slots.items():
        if slot not in source_slots:
            continue
        alignment = _align_slot(slot, source_slots[slot], blocks, score_slot)
        alignments.append(alignment)
        for i, j in alignment.pairs:
            for role in blocks[j]:
                target_path = f"{slot}{BLOCK}{j}.{role}"
                source_path = f"{slot}{BLOCK}{i}.{role}"
                if equal(target_path, source_path):
                    pairs[target_path] = source_path
    return Matching(pairs, tuple(alignments))


def _align_slot(
    slot: str,
    source: dict[int, dict[str, tuple[int, ...]]],
    target: dict[int, dict[str, tuple[int, ...]]],
    score_slot: Callable[[str], np.ndarray],
) -> Alignment:
    n_source, n_target = len(source), len(target)
    if n_source == n_target:
        # In order and one-to-one, equally many blocks leave one alignment only.
        pairs, margin = tuple((i, i) for i in range(n_source)), None
    else:
        scores = np.array(score_slot(slot), dtype=np.float64)
        for i in range(n_source):
            for j in range(n_target):
                if source[i] != target[j]:
                    scores[i, j] = -np.inf
        pairs, margin = align(scores)
    return Alignment(slot, n_source, n_target, pairs, margin)
