"""What `verify` computes without dense matrices and whole weights, against both in NumPy."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.verification.evidence import close_weights, cosine_evidence
from prolora_jax.verification.weights import update_distance, update_norm, update_values

SHAPES = ((24, 10), (10, 24), (6, 4, 3, 3))
RNG = np.random.default_rng(0)


def module(shape: tuple[int, ...], rank: int, alpha: float) -> LoraModule:
    out, *rest = shape
    down = RNG.standard_normal((rank, *rest)).astype(np.float32)
    up = RNG.standard_normal((out, rank) + (1,) * (len(shape) - 2)).astype(np.float32)
    return LoraModule("unet.a", down, up, alpha)


def dense(one: LoraModule) -> np.ndarray:
    down, up = (x.astype(np.float64) for x in (one.down, one.up))
    assert one.alpha is not None
    return one.alpha / one.rank * (up.reshape(len(up), -1) @ down.reshape(one.rank, -1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [(3, 3), (1, 5), (16, 2)])
def test_a_distance_of_factors_is_that_of_their_matrices(shape, ranks):
    a, b = (module(shape, rank, alpha) for rank, alpha in zip(ranks, (4.0, -0.5), strict=True))
    expected = np.linalg.norm(dense(a) - 1.5 * dense(b))
    assert update_distance(a, b, 1.5) == pytest.approx(expected, rel=1e-12)
    assert update_norm(a) == pytest.approx(np.linalg.norm(dense(a)), rel=1e-12)
    kept = update_values(a)
    expected = np.linalg.svd(dense(a), compute_uv=False)[: len(kept)]
    np.testing.assert_allclose(kept[: len(expected)], expected, atol=1e-10)


def test_equal_updates_of_other_factors_are_at_no_distance():
    a = module((24, 10), 3, 3.0)
    turn = np.array([[2, 1, 0], [0, 1, 0], [0, 4, 0.5]])  # its numbers and its inverse's are exact
    inverse = np.array([[0.5, -0.5, 0], [0, 1, 0], [0, -8, 2]])
    assert np.array_equal(turn @ inverse, np.eye(3))
    b = LoraModule("unet.a", inverse @ a.down, a.up @ turn, 3.0)
    assert update_distance(a, b, 1.0) < 1e-14 * update_norm(a)  # Gram matrices would say 1e-8


@dataclass
class Piecewise:
    """A base model on disk, whose weights may be read piece by piece alone."""

    spec: BaseModelSpec
    weights: dict[str, np.ndarray]

    def numbers(self, path, step):
        flat = self.weights[path].reshape(-1)
        assert step < flat.size
        yield from (flat[first : first + step] for first in range(0, flat.size, step))

    def whole(self, path):
        raise AssertionError(f"{path} was read whole")

    matrix = weight = fingerprint = whole


def test_weights_are_compared_piece_by_piece():
    shape, names = (300, 301), ("lm.a", "lm.b", "lm.c")
    spec = BaseModelSpec("made", {name: ModuleSpec(name, shape) for name in names})
    first = {name: RNG.standard_normal(shape).astype(np.float16) for name in names}
    noise = {name: 0.01 * RNG.standard_normal(shape).astype(np.float32) for name in names}
    second = {name: (first[name] + noise[name]).astype(np.float32) for name in names}
    source, target = Piecewise(spec, first), Piecewise(spec, second)
    found = cosine_evidence(source, target, names, names[:2])
    for (i, a), (j, b) in itertools.product(enumerate(names), enumerate(names[:2])):
        x, y = first[a].astype(np.float64), second[b].astype(np.float64)
        expected = np.sum(x * y), np.sum(x * x), np.sum(y * y)
        np.testing.assert_allclose(found[i, j], expected, rtol=1e-12, atol=1e-9)
    assert close_weights(source, target, "lm.a", "lm.a", told=None)
    assert not close_weights(source, target, "lm.a", "lm.b", told=None)
