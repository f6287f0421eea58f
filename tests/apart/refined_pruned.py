"""A refinement for a pruned target, SDXL to SSD-1B: what the student is taught is torch's."""

import pytest
from refined_pairs import made_pair, require_torchs_teacher, taught

pytestmark = pytest.mark.usefixtures("little_optimized")


def test_a_pruned_target_is_taught_what_torch_says(tmp_path):
    pruned = made_pair(tmp_path, "sdxl", "ssd-1b")
    rows, done = taught(pruned, tmp_path / "work")
    require_torchs_teacher(pruned, rows)
    assert done.record.missed is not None
    assert done.record.missed[1] < done.record.missed[0]
    assert done.record.loss_curve[-1] < done.record.loss_curve[0]
