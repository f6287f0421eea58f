"""Worker processes: a killed one is told and replaced, and none outlives its parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worker_tasks import (
    doubled,
    doubled_but_once_killed,
    doubled_while_alive,
    marked_and_killed,
)

from prolora_jax.engines.processes import run_in_processes
from prolora_jax.errors import ProloraError, Refusal


def test_every_task_has_its_result_once():
    assert sorted(run_in_processes(doubled, [3, 1, 1, 2], 2)) == [(1, 2), (1, 2), (2, 4), (3, 6)]


def test_signs_of_life_are_heard_before_anything_is_done():
    heard: list[int] = []
    found = []
    for task, result in run_in_processes(doubled_while_alive, [1], 1, lambda: heard.append(1)):
        found.append((task, result, bool(heard)))
    assert found == [(1, 2, True)]


def test_a_killed_worker_is_told_and_its_work_done(tmp_path: Path, caplog):
    tasks = [(number, tmp_path / "mark") for number in range(4)]
    found = list(run_in_processes(doubled_but_once_killed, tasks, 2))
    assert sorted((task[0], result) for task, result in found) == [(n, 2 * n) for n in range(4)]
    assert "a worker process was ended by the system" in caplog.text


def test_workers_that_are_killed_again_are_an_error(tmp_path: Path):
    mark = tmp_path / "mark"
    with pytest.raises(ProloraError, match=r"ended by the system twice.*--workers 1") as caught:
        list(run_in_processes(marked_and_killed, [mark], 1))
    assert mark.read_text() == "xx"
    assert caught.value.code is Refusal.WORKER_ENDED


PROGRAM = """
import time
from prolora_jax.engines.processes import run_in_processes

def wait(_):
    print(__import__("os").getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    list(run_in_processes(wait, [0], 1))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
        # The pipe ends when the last process that holds it does: the worker, in ten minutes.
        assert parent.stdout.read() == ""
    for _ in range(1000):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
