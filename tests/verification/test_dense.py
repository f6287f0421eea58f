"""The dense recomputation of `verify` against the naive reference of the tests."""

import numpy as np
import pytest
import reference
from migrated import weight

from prolora_jax.verification.dense import recompute

EXACT = 1e-12  # two float64 routes, sizes of order 1
GAP, OPTIMAL = ("gap", None), ("optimal", None)


@pytest.mark.parametrize("method", reference.ARMS)
@pytest.mark.parametrize("shape", [(9, 9), (7, 16), (16, 7)])
@pytest.mark.parametrize(
    "rule", [("fraction", 0.4), ("energy", 0.9), ("numerical", None), GAP, OPTIMAL]
)
@pytest.mark.parametrize("pair_rank", ["max", "own"])
@pytest.mark.parametrize("distance", [0.1, 3.0])
def test_recompute_agrees_with_reference(method, shape, rule, pair_rank, distance):
    rng = np.random.default_rng(3)
    source = weight(rng, shape)
    target = weight(rng, shape, source, distance) * np.linspace(3.0, 0.1, shape[1])
    delta = rng.standard_normal(shape)
    spectra = reference.svd(source)[1], reference.svd(target)[1]
    known = ("optimal", min(shape), max(shape)) if rule == OPTIMAL else rule
    k_s, k_t = reference.pair_ranks(*spectra, known, pair_rank)
    pair = reference.pair_of_weights(source, target, k_s, k_t)
    # 0.3: some pairs lie below it, and far from it, in the distant case.
    expected = reference.project(method, pair, delta, min_cos=0.3)

    found = recompute(method, source, target, delta, rule, pair_rank, rotation_min_cos=0.3)

    np.testing.assert_allclose(found.delta_t, expected, atol=EXACT * float(np.linalg.norm(delta)))
    assert (found.k_source, found.k_target) == (k_s, k_t)
    assert found.phi_left == pytest.approx(reference.phi(pair.u_s, pair.u_t), abs=EXACT)
    assert found.phi_right == pytest.approx(reference.phi(pair.v_s, pair.v_t), abs=EXACT)
    assert found.chance_left == reference.chance(k_s, k_t, shape[0])
    assert found.chance_right == reference.chance(k_s, k_t, shape[1])


def test_ranks_really_differ_in_some_cases():
    rng = np.random.default_rng(3)
    source = weight(rng, (9, 9))
    target = source * np.linspace(3.0, 0.1, 9)
    found = recompute("rotation", source, target, np.eye(9), ("energy", 0.9), "own")
    assert found.k_source != found.k_target


@pytest.mark.parametrize(
    ("spectrum", "rule", "gap"),
    [
        ([4.0, 2.0, 1.0], ("rank", 1.0), 0.5),
        ([4.0, 2.0, 2.0], ("rank", 2.0), 0.0),
        ([4.0, 2.0, 1.0], ("rank", 3.0), 1.0),  # square and whole: nothing is cut
        ([0.0, 0.0, 0.0], ("rank", 2.0), 0.0),
        ([0.0, 0.0, 0.0], ("energy", 0.9), 1.0),  # nothing is retained
    ],
)
def test_gap_at_the_cut(spectrum, rule, gap):
    found = recompute("prolora", np.diag(spectrum), np.diag(spectrum), np.eye(3), rule)
    assert found.gap_source == found.gap_target == pytest.approx(gap, abs=EXACT)
    assert found.undetermined == (gap == 0.0)


def test_whole_wide_weight_is_cut_at_zero():
    wide = np.diag([4.0, 2.0, 1.0])[:2]
    found = recompute("prolora", wide, wide, np.ones((2, 3)), ("rank", 2.0))
    assert found.gap_source == pytest.approx(0.5)
