"""Intervals of means over pictures, and of differences of two arms over the same pictures."""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Num

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.metrics.shares import RESAMPLES, Share


def mean_interval(
    scores: Num[np.ndarray, " n"],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Share:
    """The mean of scores with a 95 % percentile bootstrap interval.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Args:
        scores: one for each picture.
        groups: what each picture belongs to, such as its prompt: whole groups are drawn then, since
            pictures of one prompt are alike, and an interval over single ones would be too narrow.
        seed: of the resamples.

    Returns:
        The mean, and the 2.5 % and 97.5 % quantiles over `RESAMPLES` resamples.

    Raises:
        UsageError: there are no scores, one is not finite, or there are not as many groups.
    """
    labels = range(len(scores)) if groups is None else groups
    if not len(scores) or len(labels) != len(scores) or not np.isfinite(scores).all():
        raise UsageError(
            f"interval of {len(scores)} scores in {len(labels)} groups: expected at least one, all "
            f"finite, and a group for each; leave out pictures without a score",
            code=Refusal.BAD_OPTION,
        )
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    places = [numbers[label] for label in labels]
    sums = np.bincount(places, scores.astype(np.float64))
    counts = np.bincount(places)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Share(float(sums.sum() / len(scores)), float(low), float(high))


def difference_interval(
    first: Num[np.ndarray, " n"],
    second: Num[np.ndarray, " m"],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Share:
    """The mean of `first - second` over the same pictures, as `mean_interval`.

    Args:
        first: scores of one arm.
        second: of another, from the same prompts and noise, in the same order.
        groups: what each picture belongs to.
        seed: of the resamples.

    Raises:
        UsageError: there are not as many of both, or as `mean_interval`.
    """
    if first.shape != second.shape:
        raise UsageError(
            f"paired difference: found {len(first)} scores beside {len(second)}; expected as many, "
            f"of the same prompts and seeds; compare only pictures that both arms have",
            code=Refusal.BAD_OPTION,
        )
    return mean_interval(first - second, groups=groups, seed=seed)
