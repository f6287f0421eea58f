"""What two base models draw by themselves, and what each says of the other's pictures."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from prolora_jax.evaluation.laboratory.adapters import TrainedFactors
from prolora_jax.evaluation.laboratory.data import NULL
from prolora_jax.evaluation.laboratory.diffusion import (
    Predict,
    noised,
    sample,
    signal_and_noise,
)
from prolora_jax.evaluation.laboratory.distillation import JUMP_GRID, STRIDES, jumping
from prolora_jax.evaluation.laboratory.losses import losses
from prolora_jax.evaluation.laboratory.workshop import Workshop
from prolora_jax.refine.guard import disagreement
from prolora_jax.refine.rows import NoisyRows, SamplePool, noised_rows
from prolora_jax.refine.triggers import draw_words, word_shares

POOL, STEPS, JUDGED = 256, 20, 512
TARGET_SEED, SOURCE_SEED, GUARD_SEED = 101, 102, 103


class PairSamples:
    """Samples of a source and a target.

    Args:
        workshop: where both were trained.
        source: name of the one.
        target: name of the other.
        pictures: that each draws; `POOL` if None.
    """

    def __init__(self, workshop: Workshop, source: str, target: str, pictures: int | None = None):
        self.workshop, self.source, self.target = workshop, source, target
        self.pictures = POOL if pictures is None else pictures
        self.hastened = workshop.recipe.base(target).kind == "hasten"

    def of_target(self) -> Predict:
        """The target's answers."""
        return self.workshop.predict(self.target)

    def of_source(self, factors: Mapping[str, TrainedFactors] | None = None) -> Predict:
        """The source's answers to what the target is asked: jumps where it knows nothing else."""
        predict = self.workshop.predict(self.source, dict(factors or {}))
        return jumping(predict) if self.hastened else predict

    def drawn(self, predict: Predict, words: np.ndarray, seed: int) -> SamplePool:
        """Pictures by words, without guidance but that which is in a jump."""
        steps = STRIDES if self.hastened else STEPS
        return SamplePool(sample(predict, words, steps=steps, seed=seed), words)

    def asked(self, pools: tuple[SamplePool, ...], count: int, seed: int) -> NoisyRows:
        """Samples with noise, at times that the target knows."""
        grid = JUMP_GRID[:STRIDES] if self.hastened else None
        return noised_rows(pools, count, _levels, seed, grid)

    @cached_property
    def pool_of_target(self) -> SamplePool:
        """T."""
        return self.drawn(self.of_target(), self._even_words(TARGET_SEED), TARGET_SEED)

    @cached_property
    def pool_of_source(self) -> SamplePool:
        """S."""
        return self.drawn(self.of_source(), self._even_words(SOURCE_SEED), SOURCE_SEED)

    @cached_property
    def losses(self) -> dict[str, float]:
        """Of each net on samples of both, as `disagreement` names them."""
        on_target, on_source = (
            self._losses(pool) for pool in (self.pool_of_target, self.pool_of_source)
        )
        return {
            "source_on_target": on_target[0],
            "target_on_source": on_source[1],
            "target_own": on_target[1],
            "source_own": on_source[0],
        }

    @property
    def disagreement(self) -> float:
        """The guard's R (docs/refine.md 4)."""
        return disagreement(**self.losses)

    def _losses(self, pool: SamplePool) -> tuple[float, float]:
        """Denoising loss of the source and of the target, on the same noised samples."""
        rng = np.random.default_rng(GUARD_SEED)
        places = np.arange(JUDGED) % len(pool.clean)
        grid = JUMP_GRID[:STRIDES]
        times = rng.choice(grid, JUDGED) if self.hastened else rng.random(JUDGED, np.float32)
        noise = rng.standard_normal((JUDGED, *pool.clean.shape[1:]), np.float32)
        rows = noised(pool.clean[places], noise, times, pool.conditioning[places])
        source, target = (
            float(losses(predict, rows, repeats=1).mean())
            for predict in (self.of_source(), self.of_target())
        )
        return source, target

    def _even_words(self, seed: int) -> np.ndarray:
        """Words for pools that all adapters of a pair share."""
        even, rng = word_shares(np.zeros(NULL)), np.random.default_rng(seed)
        return draw_words(even, self.pictures, NULL, rng)


def _levels(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    signal, noise = signal_and_noise(times)
    return signal[:, 0, 0, 0], noise[:, 0, 0, 0]
