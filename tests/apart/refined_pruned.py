"""A refinement for a pruned target, SDXL to SSD-1B: what the student is taught is torch's."""

import pytest
from refined_pairs import made_pair, require_torchs_teacher

pytestmark = pytest.mark.usefixtures("little_optimized")


def test_teacher_of_a_pruned_target(tmp_path, monkeypatch):
    pruned = made_pair(tmp_path, "sdxl", "ssd-1b")
    require_torchs_teacher(pruned, tmp_path / "work", monkeypatch)
