"""A process of tests that was too large fails the run, and caches of tests can be emptied."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import memory
import pytest
from patience import UNTIL_HUNG

CONFTEST = """
import memory
def pytest_configure(config):
    config.pluginmanager.register(memory.PeakMemory({most}))
"""


def run(folder: Path, most: int, processes: str) -> subprocess.CompletedProcess[str]:
    """A run of one test that passes, where processes may have `most` bytes."""
    (folder / "conftest.py").write_text(CONFTEST.format(most=most))
    (folder / "test_nothing.py").write_text("def test_nothing(): pass\n")
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-n", processes, "-p", "no:cacheprovider", "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(memory.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=UNTIL_HUNG,
    )


@pytest.mark.skipif(memory.resident("VmHWM") == 0, reason="this system does not say it")
@pytest.mark.parametrize(("processes", "name"), [("0", "this process"), ("1", "gw0")])
def test_a_process_that_was_too_large_fails_the_run(tmp_path: Path, processes: str, name: str):
    done = run(tmp_path, 1, processes)
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert f"FAILED: memory of {name}: 0.0" in done.stdout
    done = run(tmp_path, 1 << 40, processes)
    assert done.returncode == 0, done.stdout
    assert f"{name} 0.0" in done.stdout.partition("peak memory, GiB:")[2]


def test_caches_of_tests_are_emptied():
    made_anew.cache_clear()
    assert made_anew() is made_anew()
    memory.forget_cached()
    assert made_anew.cache_info().currsize == 0


@functools.cache
def made_anew() -> object:
    return object()
