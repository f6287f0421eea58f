"""How fast a store is asked, on a clock of the test's own."""

import pytest

from prolora_jax.io.places.pacing import Pace, StoreBusy


def test_the_rate_falls_and_rises():
    """Halved once by many at once, then up again; waits have an end."""
    now, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    signs: list[float] = []
    pace = Pace(1000, lambda: now[0], sleep, lambda: signs.append(now[0]))
    first, left = pace.rate, [6]

    def ask() -> str:
        if left[0]:
            left[0] -= 1
            raise StoreBusy("busy", overloaded=True)
        return "done"

    now[0] = 10.0
    assert pace.patiently(ask) == "done"
    assert first / 2**6 <= pace.rate < first / 2
    assert max(waits) <= 6.4
    assert len(signs) == 6
    slow = pace.rate
    for _ in range(50):
        pace.patiently(ask)
    assert pace.rate == pytest.approx(slow + 25)
    begun = now[0]
    for _ in range(100):
        pace.patiently(ask)
    assert 100 / pace.rate < now[0] - begun + 0.3  # no faster than the rate, but for a short burst
