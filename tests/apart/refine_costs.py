"""The script that says what a refinement needs at real size, on a net small enough."""

import runpy
from pathlib import Path

import pytest
import unets

from prolora_jax.nets.promotion import numpy_promotion

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "refine_costs.py"
SIDE, RANK = 8, 2


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_programs_of_a_small_net(script: dict):
    net = script["made"](unets.SMALLEST, SIDE, 1000)
    recipe = script["RefineRecipe"](rows=24, batch=8, micro_batch=2, at_once=2)
    names = "source-answers", "target-answers", "student"
    with numpy_promotion():  # norms in bfloat16 leave dtypes to promotion
        found = script["measured"](net, net, recipe, SIDE, RANK, names)
    assert [*found] == [*names]
    for one in found.values():
        parts = one["arguments"] + one["temporary"] + one["beside"]
        assert parts <= one["bytes"]
        assert one["beside"] == 2000  # bfloat16
        assert one["rows"] == 2
    # Forth, forth again, and back without gradients of kernels: three times at least.
    forth = found["target-answers"]["flop_a_row"]
    assert 2.5 * forth < found["student"]["flop_a_row"] < 5 * forth
    predicted = script["predicted"](recipe, found)
    assert {*predicted["minutes"]} == {*script["PEAKS"]}


def test_work_is_that_of_the_recipe(script: dict):
    recipe = script["RefineRecipe"](prompts=("a", "b"), pictures=10, rows=6, draw_steps=5, steps=2)
    found = script["work"](recipe, 1.0, 100.0, 1e4)
    # Each draws 50 times, answers 3 rows and twice 40 noised samples.
    assert found["shared"] == (50 + 3 + 80) * 101
    # Words; A and three times half of the rows; own answers, and both students' to all rows.
    assert found["adapter"] == 2 * 2 * 16 + (50 + 9) + (3 + 12) * 100 + 2 * 32 * 1e4
