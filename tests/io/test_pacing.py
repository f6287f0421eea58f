"""How fast a store is asked, on a clock of the test's own."""

import logging
import pickle
import re
from functools import partial
from pathlib import Path

import pytest

from prolora_jax.io.places.pacing import FIRST_PATIENCE, NoStore, Pace, StoreBusy, StoreRefused


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
            raise StoreBusy("busy", "s3://b", "status 503", reached=True, overloaded=True)
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


class Clock:
    """Time that passes while one sleeps."""

    def __init__(self):
        self.now = 10.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def pace(self, **how) -> Pace:
        return Pace(900, lambda: self.now, self.sleep, **how)


def none_came() -> None:
    raise StoreBusy("s3://b/k: none", "s3://b", "connection refused", reached=False)


def test_a_store_that_never_answered_is_none_within_seconds():
    """As a wrong command, and with what to do; of one that says that it is busy that is not so."""
    clock = Clock()
    with pytest.raises(NoStore, match=r"s3://b: found no store.*refused.*check.*ENDPOINT") as told:
        clock.pace().patiently(none_came)
    assert told.value.exit_code == pickle.loads(pickle.dumps(told.value)).exit_code == 2
    assert clock.now - 10 <= FIRST_PATIENCE

    def busy() -> None:
        raise StoreBusy("s3://b/k: none", "s3://b", "status 503", reached=True)

    for pace, ask in ((clock.pace(), busy), (clock.pace(waiting=lambda: None), none_came)):
        begun = clock.now
        with pytest.raises(StoreBusy):
            pace.patiently(ask)
        assert clock.now - begun > 800


def test_one_that_has_answered_is_waited_for_aloud(caplog: pytest.LogCaptureFixture):
    """One line of each time that it is away: which, since when, until when."""
    clock = Clock()
    pace = clock.pace()
    with pytest.raises(FileNotFoundError):
        pace.patiently(Path("/none/such").stat)

    def ask(back: float) -> None:
        if clock.now < back:
            none_came()

    for times in (1, 2):
        with caplog.at_level(logging.WARNING):
            pace.patiently(partial(ask, clock.now + 300))
        assert len(caplog.messages) == times
    clock_time = r"\d\d:\d\d:\d\d"
    line = rf"s3://b: no answer since {clock_time} \(connection refused\).* until {clock_time}"
    assert re.match(line, caplog.messages[0])


def test_a_refusal_of_the_first_question_is_a_wrong_command():
    pace = Clock().pace()

    def refuse() -> None:
        raise StoreRefused("s3://b/k: no", forbidden=True)

    with pytest.raises(NoStore) as first:
        pace.patiently(refuse)
    assert (first.value.exit_code, first.value.forbidden) == (2, True)
    pace.patiently(lambda: None)
    with pytest.raises(StoreRefused) as later:
        pace.patiently(refuse)
    assert later.value.exit_code == 1
