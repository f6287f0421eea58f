"""Layers of two kinds in one stack: full attention never stands for linear attention."""

from collections.abc import Sequence

import numpy as np
import pytest

from prolora_jax.architectures.recognition import spec_from_shapes
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.matching.matching import match_modules

ROLES = {
    "F": ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"),
    "L": ("linear_attn.in_proj_qkv", "linear_attn.out_proj", "mlp.up_proj"),
}


def model(kinds: str) -> BaseModelSpec:
    """A language model with a full (F) or linear (L) layer for each letter."""
    names = [f"model.layers.{i}.{role}" for i, kind in enumerate(kinds) for role in ROLES[kind]]
    return spec_from_shapes({f"{name}.weight": (8, 8) for name in names}, name=kinds)


def number(path: str) -> int:
    return int(path.split(".")[3])


def chosen(source: str, target: str, best: dict[int, int]) -> dict[int, int]:
    """Source layer by target layer, where a layer is most like the one that `best` says."""

    def evidence(sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        alike = [[best.get(number(t)) == number(s) for t in targets] for s in sources]
        return np.stack([np.where(alike, 0.9, 0.1), np.ones_like(alike), np.ones_like(alike)], -1)

    pairs = match_modules(model(source), model(target), evidence).pairs
    for path, source_path in pairs.items():
        assert path.split(".")[4:] == source_path.split(".")[4:]
    return {number(path): number(source_path) for path, source_path in pairs.items()}


@pytest.mark.parametrize(
    ("target", "best", "expected"),
    [
        ("LFLF", {0: 1, 1: 3, 2: 5, 3: 7}, {0: 1, 1: 3, 2: 5, 3: 7}),
        # The layers that look best are of the other kind, or would be in another order.
        ("LFLF", {0: 3, 1: 2, 2: 7, 3: 6}, {1: 3, 3: 7}),
        ("FL", {0: 2, 1: 3}, {0: 3}),
        ("FFF", {0: 0, 1: 3, 2: 7}, {1: 3, 2: 7}),
    ],
)
def test_layers_stand_for_their_own_kind(
    target: str, best: dict[int, int], expected: dict[int, int]
) -> None:
    found = chosen("LLLFLLLF", target, best)
    kinds = {place: "LLLFLLLF"[origin] for place, origin in found.items()}
    assert kinds == {place: target[place] for place in found}
    assert found.items() >= expected.items()


def test_as_many_layers_of_a_kind_as_there_are_find_a_place() -> None:
    assert len(chosen("LLLFLLLF", "FFF", {0: 0, 1: 3, 2: 7})) == 2
    assert len(chosen("LLLF", "FLLL", {})) == 3


def test_a_model_of_one_kind_is_not_aligned_with_one_of_the_other() -> None:
    with_both, full = model("FL"), model("FF")
    pairs = match_modules(with_both, full, lambda s, t: np.ones((len(s), len(t), 3))).pairs
    assert {number(source) for source in pairs.values()} == {0}
