"""Files of tests that no worker may run: in processes of their own.

What teaches and draws compiles more than a worker has room for beside what it has imported; files
that import the same follow one another in one process. Eight devices are asked for before XLA
starts. A Ray cluster forks, which no process may that has computed by JAX.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

APART = Path(__file__).parents[1] / "apart"
PROCESSES = (
    (
        "delta.py",
        "evaluated.py",
        "refined.py",
        "refined_from_nothing.py",
        "refined_pruned.py",
    ),
    ("laboratory_refine.py", "refine_costs.py"),
    ("refined_over_devices.py",),
    ("fleet_ray.py",),
)


def test_every_file_has_a_process():
    named = [name for names in PROCESSES for name in names]
    assert sorted(named) == sorted(file.name for file in APART.glob("*.py"))


@pytest.mark.parametrize("names", PROCESSES, ids=" ".join)
def test_files_in_a_process_of_their_own(names: tuple[str, ...]):
    files = [str(APART / name) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *files]
    # Not as a worker of the run that this test is part of.
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    how = {"cwd": APART.parents[1], "env": surroundings}
    done = subprocess.run(command, capture_output=True, text=True, **how)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "[100%]" in done.stdout
