"""The classifier, and measures on generated pictures."""

import numpy as np

from prolora_jax.evaluation.laboratory.classifier import train_classifier
from prolora_jax.evaluation.laboratory.data import CONCEPTS, Pictures, concept_pictures
from prolora_jax.evaluation.laboratory.samples import one_of_each
from prolora_jax.evaluation.laboratory.workshop import picture_grid
from prolora_jax.evaluation.metrics.shares import diversity, squared_mmd


def shapes(seed: int) -> Pictures:
    drawn = [concept_pictures(name, 40, seed) for name in CONCEPTS]
    return Pictures(
        np.concatenate([p.pixels for p in drawn]), np.concatenate([p.words for p in drawn])
    )


def test_classifier_knows_shapes_it_has_not_seen_and_tells_sets_apart():
    taught, new = shapes(0), shapes(1)
    net = train_classifier(taught)
    assert np.mean(net.words(new.pixels) == new.words) > 0.95
    known, fresh = net.features(taught.pixels), net.features(new.pixels)
    crosses = net.features(new.taken(np.arange(40)).pixels)
    assert squared_mmd(fresh, known) < 0.02 < squared_mmd(crosses, known)
    assert diversity(crosses) < diversity(fresh)


def test_grid_has_a_row_for_each_arm():
    pixels = np.linspace(-1, 1, 20 * 64).reshape(20, 8, 8)
    digits = one_of_each(pixels, np.arange(20) % 10)
    np.testing.assert_array_equal(digits, pixels[:10])
    assert one_of_each(pixels, np.full(20, 11)).shape == (10, 8, 8)
    grid = picture_grid([digits, digits], zoom=2)
    assert grid.shape == (2 * 18, 10 * 18)
    assert grid[1, 1] == 0
