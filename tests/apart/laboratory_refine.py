"""Arms that learn from the models' own samples: small nets, and cases whose answer is known."""

from pathlib import Path

import jax
import numpy as np
import pytest

from prolora_jax.architectures.flax_trees import unet_from_flax
from prolora_jax.evaluation.demo import FOLDER
from prolora_jax.evaluation.laboratory import (
    data,
    exams,
    lessons,
    nets,
    pair_samples,
    refining,
    workshop,
)
from prolora_jax.evaluation.laboratory.diffusion import sample
from prolora_jax.evaluation.laboratory.distillation import (
    GUIDANCE,
    JUMP_GRID,
    STRIDES,
    SUBSTEPS,
    jumping,
    jumps,
)
from prolora_jax.evaluation.laboratory.exams import Depth
from prolora_jax.evaluation.laboratory.lessons import Split
from prolora_jax.evaluation.laboratory.recipe import AdapterRecipe, BaseRecipe, Recipe
from prolora_jax.evaluation.laboratory.sweep import Arm, Sweep, results, run_sweep
from prolora_jax.io.documents import read_json, read_yaml
from prolora_jax.nets.unet.loading import initial_params

CONFIGS = Path(__file__).parents[2] / "configs" / "laboratory"
BASES = (
    BaseRecipe("source", "train", steps=2, rate=1e-3),
    BaseRecipe("narrow", "narrow", steps=2, rate=1e-3, parent="source"),
    BaseRecipe("quick", "hasten", steps=2, rate=1e-4, parent="source"),
    BaseRecipe("deep", "train", steps=1, rate=1e-3, depth=6),
    BaseRecipe("shifted", "shift", steps=1, rate=1e-3, parent="deep"),
)
ADAPTERS = (AdapterRecipe("invert", "style", rank=2, steps=4, rate=1e-2, modules="linear"),)
RECIPE = Recipe(BASES, ADAPTERS, seeds=(0,), batch=4, width=16, depth=1)
FEW = {"rows": 16, "steps": 2}
SWEEP = Sweep(
    grids=({"method": ["copy"]},),
    controls=(
        Arm(control="none"),
        Arm(control="delta"),
        Arm(control="delta-absolute"),
        Arm(control="refine", options=FEW),
        Arm(control="reteach", options=FEW),
    ),
    targets=("source", "narrow", "quick"),
    adapters=("invert",),
    depth=Depth(pictures=8, repeats=2, scales=False),
)


@pytest.fixture(autouse=True)
def compiled_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def few_of_everything():
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (pair_samples, "POOL"),
            (pair_samples, "JUDGED"),
            (refining, "MISMATCH_ROWS"),
            (exams, "HELD_OUT_JUMPS"),
            (workshop, "JUMPS"),
            (lessons, "JUMPS"),
        ):
            patch.setattr(module, name, 64)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> workshop.Workshop:
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (16, 8, 8)).astype(np.float32)
    shown = data.Pictures(pixels, (np.arange(16) % 10).astype(np.int32))
    folder = tmp_path_factory.mktemp("lab")
    return workshop.Workshop(folder, RECIPE, pictures=Split(shown, shown))


def test_arms_are_judged_on_the_source_itself_on_half_the_width_and_on_jumps(made):
    for base in SWEEP.targets:
        made.make_adapter(base, "invert", 0)
    run_sweep(made, SWEEP, "refine")
    rows = list(results(made.folder / "results" / "refine", SWEEP))
    by = {(row["target"], row["arm"].split()[0]): row for row in rows}
    assert len(by) == len(rows) == 18

    # On the source itself both teachers are the adapter, and the copy is the right student.
    assert by["source", "delta"]["arrived"][0] == pytest.approx(1, abs=1e-4)
    assert by["source", "delta-absolute"]["arrived"][0] == pytest.approx(1, abs=1e-4)
    assert {row["disagreement"] for row in rows if row["target"] == "source"} == {0.0}
    student = by["source", "refine"]["student"]
    assert student["loss"][0] < 1e-6
    assert student["mismatch"][0] < 1e-4
    assert not student["from_zero"]

    # Nothing can be copied to another width; a student starts from nothing, and has learned.
    assert by["narrow", "copy"]["moved"] == 0
    student = by["narrow", "refine"]["student"]
    assert student["from_zero"]
    assert student["mismatch"][0] == pytest.approx(1)
    assert student["mismatch"][1] != student["mismatch"][0]
    assert by["narrow", "refine"]["moved"] == by["source", "copy"]["moved"]

    # A style has no other words to keep apart.
    assert by["quick", "reteach"]["student"]["steps"] == 0
    assert by["quick", "reteach"]["arrived"] == by["quick", "copy"]["arrived"]
    assert by["quick", "refine"]["student"]["steps"] == 2


def test_a_shifted_child_has_its_parents_blocks_under_other_numbers(made):
    params = initial_params(made.config("deep"), seed=0)
    parent = unet_from_flax(params)
    child = unet_from_flax(nets.shifted_params(params, made.config("shifted")))
    kept = {"0": "0", "1": "2", "2": "5"}
    numbers = {match[0] for key in child for match in [nets.BLOCK_NUMBER.search(key)] if match}
    assert numbers == {*kept}
    for key, tensor in child.items():
        of = nets.BLOCK_NUMBER.sub(lambda match: kept[match[0]], key)
        np.testing.assert_array_equal(tensor, parent[of])
    place = "mid_block.attentions.0.transformer_blocks.1.attn1.to_q.weight"
    assert np.abs(child[place] - parent[place]).max() > 0.01  # by name it is another block


def test_each_base_is_compared_with_its_own_source():
    recipe = read_yaml(CONFIGS / "refine.yaml", Recipe)
    sources = {base.name: recipe.source_of(base.name) for base in recipe.bases}
    assert sources["pruned-s1"] == "source-s1"
    assert sources["shifted"] == "deep"
    assert sources["narrow"] == sources["stranger"] == sources["source"] == "source"


def test_what_was_trained_before_stays_trained():
    """The hash of the demo's bases was made before bases had a depth."""
    recipe = read_yaml(FOLDER / "recipe.yaml", Recipe)
    note = read_json(FOLDER / "bases" / "pruned" / "trained.json")
    assert isinstance(note, dict)
    assert note["hash"] == recipe.base_hash("pruned")
    digits, refine = (read_yaml(CONFIGS / f"{n}.yaml", Recipe) for n in ("digits", "refine"))
    for base in digits.bases:
        assert refine.base_hash(base.name) == digits.base_hash(base.name)
    deeper = Recipe((BaseRecipe("source", "train", 2, 1e-3, depth=3),), ())
    assert deeper.base_hash("source") != Recipe(BASES, ()).base_hash("source")


@pytest.mark.parametrize("name", ["refine_sweep", "refine_samples"])
def test_sweeps_ask_for_what_the_recipe_trains(name: str):
    recipe = read_yaml(CONFIGS / "refine.yaml", Recipe)
    sweep = read_yaml(CONFIGS / f"{name}.yaml", Sweep)
    assert {recipe.base(target).name for target in sweep.targets} == {*sweep.targets}
    assert {recipe.adapter(adapter).name for adapter in sweep.adapters} == {*sweep.adapters}
    assert {"delta", "refine", "reteach"} <= {arm.control for arm in sweep.arms()}


def toy(noisy: np.ndarray, times: np.ndarray, words: np.ndarray) -> np.ndarray:
    """A smooth made-up net; words matter, so guidance does."""
    return 0.3 * noisy * (times + 0.05 * words)[:, None, None, None]


def test_jumps_of_a_grid_are_the_teachers_guided_steps():
    words = np.arange(6, dtype=np.int32)
    fast = sample(jumping(toy), words, steps=STRIDES, seed=3)
    slow = sample(toy, words, steps=STRIDES * SUBSTEPS, seed=3, strength=GUIDANCE)
    np.testing.assert_allclose(fast, slow, atol=1e-4)
    pictures = data.Pictures(np.zeros((6, 8, 8), np.float32), words)
    rows = jumps(toy, pictures, 12, seed=0)
    assert set(rows.times) <= set(JUMP_GRID[:STRIDES])
    np.testing.assert_array_equal(jumping(toy)(*rows[:3]), rows.target)


def test_unknown_settings_of_a_student_show_at_once():
    with pytest.raises(TypeError, match="stepps"):
        Arm(control="refine", options={"stepps": 3})
    with pytest.raises(ValueError, match="expected one of .*reteach"):
        Arm(control="distil")
    name = Arm(control="refine", options={"teacher": "absolute", "steps": 3}).name
    assert name == "refine steps=3 teacher=absolute"
