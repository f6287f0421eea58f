"""Alignment of blocks and matching of modules."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.matching import align, match_modules, same_structure, split_block

SLOT = "unet.down_blocks.1.attentions.0"


def brute_force(scores: np.ndarray) -> list[tuple[float, tuple[tuple[int, int], ...]]]:
    """Every monotone alignment that uses the shorter side fully, best first."""
    rows, columns = scores.shape
    if rows >= columns:
        found = [
            tuple(zip(c, range(columns), strict=True)) for c in combinations(range(rows), columns)
        ]
    else:
        found = [
            tuple(zip(range(rows), c, strict=True)) for c in combinations(range(columns), rows)
        ]
    return sorted(((sum(scores[i, j] for i, j in p), p) for p in found), reverse=True)


def spec(name: str, **blocks: int) -> BaseModelSpec:
    """A base with `blocks[slot]` transformer blocks of two layers per slot, and one conv."""
    modules = {"unet.conv_in": ModuleSpec("unet.conv_in", (8, 4, 3, 3))}
    for slot, count in blocks.items():
        for index in range(count):
            for role in ("attn1.to_q", "ff.net.2"):
                path = f"unet.{slot}.transformer_blocks.{index}.{role}"
                modules[path] = ModuleSpec(path, (8, 8))
    return BaseModelSpec(name, modules)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_alignment_is_the_best_monotone_one(rows: int, columns: int, seed: int):
    scores = np.random.default_rng(seed).normal(size=(rows, columns))
    ranking = brute_force(scores)
    pairs, margin = align(scores)
    assert pairs == ranking[0][1]
    if len(ranking) == 1:
        assert margin is None
    else:
        assert margin == pytest.approx(ranking[0][0] - ranking[1][0])


def test_forbidden_pairs_are_not_used():
    scores = np.array([[5.0, 0.0], [0.0, 1.0], [0.0, 0.5]])
    scores[0, 0] = -np.inf
    pairs, _ = align(scores)
    assert pairs == ((1, 0), (2, 1))


def test_no_alignment_when_every_pair_is_forbidden():
    assert align(np.full((3, 2), -np.inf)) == ((), None)


def test_equal_structure_keeps_names_and_asks_for_no_scores():
    source = spec("a", **{"down_blocks.1.attentions.0": 2})

    def no_scores(slot: str) -> np.ndarray:
        raise AssertionError(slot)

    matching = match_modules(source, source, no_scores)
    assert matching.pairs == {path: path for path in source.modules}
    assert same_structure(source, source)


@pytest.mark.parametrize("kept", [(0, 1), (1, 3), (2, 3)])
def test_shallower_target_gets_the_blocks_with_the_best_scores(kept: tuple[int, int]):
    source = spec("a", **{"down_blocks.1.attentions.0": 4, "mid_block.attentions.0": 1})
    target = spec("b", **{"down_blocks.1.attentions.0": 2})
    scores = np.full((4, 2), 0.1)
    for j, i in enumerate(kept):
        scores[i, j] = 0.9
    matching = match_modules(source, target, lambda slot: scores)
    for j, i in enumerate(kept):
        target_path = f"{SLOT}.transformer_blocks.{j}.attn1.to_q"
        assert matching.pairs[target_path] == f"{SLOT}.transformer_blocks.{i}.attn1.to_q"
    assert set(matching.pairs) == set(target.modules)
    assert matching.alignments[0].pairs == tuple((i, j) for j, i in enumerate(kept))


def test_deeper_target_leaves_blocks_without_source():
    source = spec("a", **{"down_blocks.1.attentions.0": 1})
    target = spec("b", **{"down_blocks.1.attentions.0": 3})
    matching = match_modules(source, target, lambda slot: np.array([[0.1, 0.2, 0.9]]))
    found = [split for path in matching.pairs if (split := split_block(path)) is not None]
    blocks = {index for _, index, _ in found}
    assert blocks == {2}


def test_runner_up_that_is_almost_as_good_is_weak():
    source = spec("a", **{"down_blocks.1.attentions.0": 2})
    target = spec("b", **{"down_blocks.1.attentions.0": 1})
    close = match_modules(source, target, lambda slot: np.array([[0.50], [0.52]]))
    clear = match_modules(source, target, lambda slot: np.array([[0.10], [0.52]]))
    assert close.weak_slots() == {SLOT}
    assert not clear.weak_slots()


def test_modules_of_other_shape_are_not_paired():
    source = spec("a")
    target = BaseModelSpec("b", {"unet.conv_in": ModuleSpec("unet.conv_in", (8, 9, 3, 3))})
    assert not match_modules(source, target, lambda slot: np.zeros((1, 1))).pairs
