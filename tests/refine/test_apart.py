"""Files whose compiled nets are too large for a process that has run others: each in its own."""

import subprocess
import sys
from pathlib import Path

import pytest

APART = Path(__file__).parents[1] / "apart"


@pytest.mark.parametrize("name", ["refined.py", "refined_across.py", "delta.py"])
def test_file_in_a_process_of_its_own(name: str):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", str(APART / name)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=APART.parents[1])
    assert done.returncode == 0, done.stdout[-4000:]
    assert "[100%]" in done.stdout
