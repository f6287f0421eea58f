"""A refinement over eight virtual devices is that of one, and every device has its share.

XLA reads these when its first device is asked for, so nothing else may have run in this process.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["NPROC"] = "16"  # with as many threads as cores some products wait for ever
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from language_models import make_language_pair
from refined_pairs import made_pair

import prolora_jax as pl
from prolora_jax.catalog.refined import refine_files
from prolora_jax.nets.pipelines import answers
from prolora_jax.refine.job import base_net, student
from prolora_jax.refine.job.bases import DrawingBases
from prolora_jax.refine.job.devices import mesh_for
from prolora_jax.refine.job.files import RefineRequest
from prolora_jax.refine.job.recipe import USUALLY_AT_ONCE, RefineRecipe
from prolora_jax.refine.lm import answers as lm_answers
from prolora_jax.refine.lm import pair as lm_pair
from prolora_jax.refine.lm import pools
from prolora_jax.refine.lm import student as lm_student
from prolora_jax.refine.lm.recipe import LmRecipe

pytestmark = pytest.mark.usefixtures("little_optimized")

SHARE = 1e-3
"""Of the norm of what was learned: sums in another order, that twelve steps of Adam pass on."""


@pytest.fixture(autouse=True)
def memory_given_back_within() -> None:
    """Programs stay until the file is done: every test here uses the same ones."""


def updates(adapter: pl.Adapter) -> dict[str, np.ndarray]:
    return {
        m.path: m.scale * m.up.reshape(len(m.up), -1) @ m.down.reshape(len(m.down), -1)
        for m in adapter.modules
    }


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(one[path] - other[path]).sum() for path in other)))


def watched(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, which: int) -> set[int]:
    """How many rows of an argument a device has, in every call of a compiled function."""
    inner, seen = getattr(place, name), set()

    def watching(*given: Any, **how: Any) -> Any:
        rows = jax.tree.leaves(given[which])[0]
        seen.add(rows.sharding.shard_shape(rows.shape)[0])
        return inner(*given, **how)

    monkeypatch.setattr(place, name, watching)
    return seen


def test_eight_devices_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert len(jax.devices()) == 8
    pair = made_pair(tmp_path, "ssd-1b", "ssd-1b")
    with monkeypatch.context() as patch:
        patch.setattr(base_net, "mesh_for", lambda recipe: None)
        want, told = pair.run(tmp_path / "one")
    # Pictures, rows that nets are asked, rows that the student is asked.
    calls = (answers, "_draw", 6), (answers, "_ask", 2), (student, "_ask", 2)
    seen = [watched(monkeypatch, *call) for call in calls]
    found, also = pair.run(tmp_path / "many")
    assert seen == [{USUALLY_AT_ONCE}] * 3
    one, many, start = map(updates, (want, found, pair.copied))
    learned = distance(one, start)
    assert learned > 0.01
    assert distance(many, one) < SHARE * learned
    assert also.disagreement == pytest.approx(told.disagreement, rel=1e-3)
    assert also.loss_curve == pytest.approx(told.loss_curve, rel=1e-3)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "devices"),
    [(32, None, 8), (32, 1, 8), (32, 8, 4), (12, 0, 6), (12, 4, 3), (11, None, 1), (4, None, 4)],
)
def test_a_batch_that_is_not_even_uses_fewer(batch: int, micro_batch: int | None, devices: int):
    recipe = RefineRecipe(batch=batch, micro_batch=micro_batch)
    mesh = mesh_for(recipe)
    assert (1 if mesh is None else mesh.size) == devices
    options = recipe.fit_for("refine", from_zero=False, size=(128, 128), devices=devices)
    assert batch % options.micro_batch == options.micro_batch % devices == 0


def test_eight_devices_teach_a_language_model_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    texts = LmRecipe(texts=10, tokens=8, steps=4, batch=8, at_once=8, top=12, rate=1e-2)
    pair = make_language_pair(tmp_path, "qwen3", depth=1, kept=(0,))

    def taught(out: Path) -> Any:
        bases = DrawingBases(pair.source, pair.target)
        (found,) = refine_files([pair.adapter], out, bases, RefineRequest(texts=texts)).found
        assert found.report is not None
        return pl.load_adapter(out), found.report.refined

    with monkeypatch.context() as patch:
        patch.setattr(lm_pair, "mesh_for", lambda recipe: None)
        want, told = taught(tmp_path / "one")
    # Texts that are begun, judged, answered by all, and asked of the student.
    calls = (pools, "written", 2), (pools, "_nll", 2), (lm_answers, "_asked", 2)
    seen = [watched(monkeypatch, *call) for call in (*calls, (lm_student, "_apart", 2))]
    found, also = taught(tmp_path / "many")
    assert seen == [{1}] * 4
    start = updates(pl.load_adapter(pair.adapter))
    one, many = updates(want), updates(found)
    learned = distance(one, start)
    assert learned > 0.01
    assert distance(many, one) < SHARE * learned
    assert also.losses == pytest.approx(told.losses, rel=1e-5)
    assert also.loss_curve == pytest.approx(told.loss_curve, rel=1e-3)
    assert also.missed == pytest.approx(told.missed, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "devices"),
    [({}, 8), ({"batch": 12}, 4), ({"at_once": 6}, 2), ({"micro_batch": 2}, 4), ({"batch": 7}, 1)],
)
def test_texts_that_are_not_even_use_fewer(changes: dict[str, Any], devices: int):
    recipe = LmRecipe(**changes)
    mesh = mesh_for(recipe)
    assert (1 if mesh is None else mesh.size) == devices
    options = recipe.fit_for(from_zero=False, devices=devices)
    assert options.batch % (options.micro_batch or options.batch) == 0
    assert (options.micro_batch or options.batch) % devices == 0
