"""Files whose compiled nets are too large for a process that has run others: each in its own.

So are those of a Ray cluster: it forks, which no process may that has computed by JAX."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

APART = Path(__file__).parents[1] / "apart"


@pytest.mark.parametrize("name", sorted(file.name for file in APART.glob("*.py")))
def test_file_in_a_process_of_its_own(name: str):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", str(APART / name)]
    # Not as a worker of the run that this test is part of.
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    how = {"cwd": APART.parents[1], "env": surroundings}
    done = subprocess.run(command, capture_output=True, text=True, **how)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "[100%]" in done.stdout
