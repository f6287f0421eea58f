"""How times are taken: process CPU time, contestants in turn, every sample kept.

* Each contestant runs once before anything is measured: compilation, page faults and lazy imports
  are not what is compared.
* Rounds are interleaved, A B C A B C ..., never A A A B B B: a neighbour that comes or goes on a
  shared machine then meets all of them. A ratio is the median of the ratios of the rounds, so
  both of its sides were measured seconds apart.
* The clock is the CPU time of the whole process. It does not count the time in which somebody
  else had the core; it does count every thread of ours, the spinning ones, too. So it is honest
  only in a process that keeps to one thread (`isolated`), and wall time is kept beside it.
"""

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDS = 5
"""Fewest rounds from which a median is reported."""

Contestant = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Samples:
    """Seconds of one contestant, one entry a round."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median CPU seconds."""
        return float(np.median(self.cpu))

    def per(self, parts: int) -> "Samples":
        """One of so many equal parts of the job."""
        return Samples(tuple(t / parts for t in self.cpu), tuple(t / parts for t in self.wall))

    def to_dict(self) -> dict[str, Any]:
        """Statistics, and the samples that they come from."""
        low, mid, high = (float(q) for q in np.quantile(self.cpu, (0.25, 0.5, 0.75)))
        return {
            "median_s": mid,
            "quartiles_s": [low, high],
            "wall_median_s": float(np.median(self.wall)),
            "cpu_s": list(self.cpu),
            "wall_s": list(self.wall),
        }


def interleaved(
    contestants: Mapping[str, Contestant],
    rounds: int = ROUNDS,
    clock: Clock = time.process_time,
    wall_clock: Clock = time.perf_counter,
) -> dict[str, Samples]:
    """Measure contestants in turn, round by round, after one run of each that does not count.

    Args:
        contestants: what to run, by name. What a call returns is waited for (JAX) and dropped.
        rounds: samples of each.
        clock: seconds that count.
        wall_clock: seconds that are kept beside them.

    Returns:
        Samples by name, in the order of `contestants`.

    Raises:
        ValueError: there are fewer rounds than a median is worth reporting of.
    """
    if rounds < ROUNDS:
        raise ValueError(f"{rounds} rounds: expected {ROUNDS} or more")
    for run in contestants.values():
        _finish(run())
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    # As timeit does: a collection would fall on whoever is running, and walks through everything
    # that the libraries have loaded. Arrays are freed without it.
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, run in contestants.items():
                started, wall_started = clock(), wall_clock()
                _finish(run())
                cpu[name].append(clock() - started)
                wall[name].append(wall_clock() - wall_started)
    finally:
        if collecting:
            gc.enable()
    return {name: Samples(tuple(cpu[name]), tuple(wall[name])) for name in contestants}


def ratio(baseline: Samples, ours: Samples) -> float:
    """How many times as long the baseline took: the median over the ratios of the rounds."""
    return float(np.median(np.divide(baseline.cpu, ours.cpu)))


def total(samples: Mapping[str, Samples], times: Mapping[str, int]) -> Samples:
    """A whole job from measured parts: round by round, each part as often as the job has it.

    Args:
        samples: of one run of each part; all with the same number of rounds.
        times: how often each part is done; parts of `samples` that are not in it are left out.
    """
    cpu = np.sum([np.multiply(samples[name].cpu, n) for name, n in times.items()], axis=0)
    wall = np.sum([np.multiply(samples[name].wall, n) for name, n in times.items()], axis=0)
    return Samples(tuple(map(float, cpu)), tuple(map(float, wall)))


def _finish(result: object) -> None:
    """Wait for arrays that are still being computed, in a process that has JAX at all."""
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(result)
