"""What worker processes are given in tests: a spawned process imports this file by its name."""

import os
import signal
import time
from pathlib import Path

from prolora_jax.engines.processes import give_sign


def doubled(number: int) -> int:
    return 2 * number


def doubled_while_alive(number: int) -> int:
    """The number doubled, after two seconds of waiting with signs of life."""
    for _ in range(20):
        give_sign()
        time.sleep(0.1)
    return 2 * number


def doubled_but_once_killed(task: tuple[int, Path]) -> int:
    """The number doubled; the first process that gets here, which the mark tells, is killed."""
    number, mark = task
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def marked_and_killed(mark: Path) -> None:
    """Leaves a mark longer by one and is killed."""
    with mark.open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
