"""The laboratory from end to end, with a few steps of training and pictures made on the spot."""

from pathlib import Path

import jax
import numpy as np
import pytest

import prolora_jax as pl
from prolora_jax.evaluation.laboratory import adapters, controls, data, diffusion, nets, workshop
from prolora_jax.evaluation.laboratory.distillation import STRIDES, jumps
from prolora_jax.evaluation.laboratory.exams import Depth
from prolora_jax.evaluation.laboratory.lessons import effect_pictures
from prolora_jax.evaluation.laboratory.losses import exam, losses
from prolora_jax.evaluation.laboratory.recipe import AdapterRecipe, BaseRecipe, Recipe
from prolora_jax.evaluation.laboratory.summary import table
from prolora_jax.evaluation.laboratory.sweep import Arm, Sweep, results, run_sweep
from prolora_jax.io.documents import read_yaml
from prolora_jax.nets.unet.loading import initial_params
from prolora_jax.plans.options import MigrationOptions

CONFIGS = Path(__file__).parents[2] / "configs" / "laboratory"

BASES = (
    BaseRecipe("source", "train", steps=2, rate=1e-3),
    BaseRecipe("light", "tune", steps=2, rate=1e-3, parent="source", data="dim"),
)
ADAPTERS = (AdapterRecipe("invert", "style", rank=2, steps=3, rate=1e-2),)
RECIPE = Recipe(BASES, ADAPTERS, seeds=(0,), batch=4, width=16, depth=1)
SWEEP = Sweep(
    grids=({"method": ["copy", "prolora-full"], "min_similarity": [-1.0]},),
    controls=(Arm(control="none"), Arm(control="trained"), Arm(control="random-subspace")),
    targets=("light",),
    adapters=("invert",),
    depth=Depth(pictures=8, repeats=2),
)


@pytest.fixture(autouse=True)
def compiled_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def few_pictures(count: int = 16) -> data.Pictures:
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (count, 8, 8)).astype(np.float32)
    return data.Pictures(pixels, (np.arange(count) % 10).astype(np.int32))


def test_trains_once_moves_and_judges(tmp_path, monkeypatch):
    monkeypatch.setattr(workshop, "load_pictures", lambda: (few_pictures(), few_pictures(8)))
    made = workshop.Workshop(tmp_path, RECIPE)
    assert made.make_adapter("source", "invert", 0)
    assert not made.make_adapter("source", "invert", 0)

    said = []
    run_sweep(made, SWEEP, "first", said.append, train=True)
    assert not made.make_base("light")
    assert not made.make_adapter("light", "invert", 0)
    rows = {row["arm"]: row for row in results(tmp_path / "results" / "first", SWEEP)}
    assert len(rows) == len(said) == 5
    assert rows["none"]["arrived"] == [0, 0, 0]
    assert rows["trained"]["arrived"] == [1, 1, 1]
    copied = rows["copy min_similarity=-1.0"]
    assert copied["moved"] == 32
    # Close relatives: what was dropped or turned is little.
    assert rows["prolora-full min_similarity=-1.0"]["norm"] <= copied["norm"] * (1 + 1e-6)
    assert rows["random-subspace 0.5"]["norm"] < copied["norm"]
    run_sweep(made, SWEEP, "first", said.append)
    assert len(said) == 5
    assert "| copy min_similarity=-1.0 |" in table(rows.values())

    # The files are what the program reads: nothing here is private to the laboratory.
    base = pl.load_base_model(made.base_folder("source"))
    adapter = pl.load_adapter(made.adapter_file("source", "invert", 0), base.spec)
    assert len(adapter.modules) == 32


def test_merged_adds_the_update_and_leaves_the_base_alone():
    config = nets.pruned_net(16)
    params = initial_params(config, seed=0)
    factors = adapters.new_factors(config, 2, seed=1)
    path = "unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v"  # not square
    down, up = factors[path].down, np.ones(factors[path].up.shape, np.float32)
    before = params["up_blocks_0"]["attentions_1"]["transformer_blocks_0"]["attn2"]["to_v"]
    kept = np.array(before["kernel"])
    after = adapters.merged(params, {path: adapters.TrainedFactors(down, up)}, scale=0.5)
    place = after["up_blocks_0"]["attentions_1"]["transformer_blocks_0"]["attn2"]["to_v"]
    np.testing.assert_allclose(place["kernel"], kept + 0.5 * (up @ down).T, rtol=1e-5)
    np.testing.assert_array_equal(before["kernel"], kept)


def test_pruned_child_has_its_parents_first_blocks():
    parent, child = nets.full_net(16), nets.pruned_net(16)
    params = initial_params(parent, seed=0)
    kept = nets.pruned_params(params, child)
    assert "attentions_0" not in kept["mid_block"]
    assert sorted(kept["down_blocks_0"]["attentions_0"])[-1] == "transformer_blocks_0"
    np.testing.assert_array_equal(kept["conv_in"]["kernel"], params["conv_in"]["kernel"])


def test_latents_and_pixels_are_one():
    pixels = few_pictures().pixels
    latents = data.to_latents(pixels)
    np.testing.assert_array_equal(data.to_pixels(latents), pixels)
    assert latents[3, 2, 1, 0] == pixels[3, 2 * 1 + 1, 2 * 0 + 0]  # channel 2: dy = 1, dx = 0


def test_velocity_gives_back_picture_and_noise():
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 5, 4, 4, 4)).astype(np.float32)
    times = rng.random(5).astype(np.float32)
    batch = diffusion.noised(clean, noise, times, np.zeros(5, np.int32))
    a, s = diffusion.signal_and_noise(times)
    np.testing.assert_allclose(a * batch.noisy - s * batch.target, clean, atol=1e-5)
    np.testing.assert_allclose(s * batch.noisy + a * batch.target, noise, atol=1e-5)


def knows(clean: np.ndarray) -> diffusion.Predict:
    """The net that always predicts one picture."""

    def predict(noisy, times, words):
        a, s = diffusion.signal_and_noise(times)
        return (a * noisy - clean) / s

    return predict


def test_sampling_ends_at_what_the_net_predicts():
    clean = data.to_latents(few_pictures(1).pixels)[0]
    made = diffusion.sample(knows(clean), np.zeros(3, np.int32), steps=7, seed=0)
    np.testing.assert_allclose(made, np.broadcast_to(clean, made.shape), atol=1e-5)


def test_a_jump_of_a_perfect_teacher_is_its_own_velocity():
    clean = data.to_latents(few_pictures(1).pixels)[0]
    rows = jumps(knows(clean), few_pictures(), 20, seed=0)
    expected = knows(clean)(rows.noisy, rows.times, rows.words)
    np.testing.assert_allclose(rows.target, expected, atol=1e-3)
    assert len(set(rows.times.tolist())) == STRIDES


def test_exam_is_the_same_for_everyone_and_losses_are_by_picture():
    pictures = few_pictures(6)
    first, again = exam(pictures), exam(pictures)
    np.testing.assert_array_equal(first.noisy, again.noisy)
    truth = {"target": first.target}
    assert losses(lambda *_: truth["target"], first).tolist() == [0] * 6
    truth["target"] = first.target + np.eye(1, 24, 4, dtype=np.float32)[0][:, None, None, None]
    np.testing.assert_allclose(losses(lambda *_: truth["target"], first), [0, 0.25, 0, 0, 0, 0])


def test_truth_of_a_style_is_on_the_targets_data():
    shown = effect_pictures(BASES[1], ADAPTERS[0], few_pictures())
    expected = -(0.7 * (few_pictures().pixels + 1) - 1)
    np.testing.assert_allclose(shown.pixels, expected, rtol=1e-6)


@pytest.mark.parametrize("name", data.CONCEPTS)
def test_concepts_are_in_range_and_vary(name):
    pixels = data.draw_concept(name, 20, np.random.default_rng(0))
    assert np.abs(pixels).max() <= 1
    assert pixels.std(axis=0).max() > 0.1


def test_random_subspace_keeps_the_diagonal_blocks_only():
    rng = np.random.default_rng(0)
    down, up = rng.standard_normal((2, 12)), rng.standard_normal((10, 2))
    moved = controls.random_subspace({"x": adapters.TrainedFactors(down, up)}, 0.5, seed=0)["x"]
    dense, whole = moved.up @ moved.down, up @ down
    # Both blocks are orthogonal projections of the update.
    assert np.sum(dense * whole) == pytest.approx(np.sum(dense**2), rel=1e-4)
    assert 0.2 < np.sum(dense**2) / np.sum(whole**2) < 0.8
    every = controls.random_subspace({"x": adapters.TrainedFactors(down, up)}, 1.0, seed=0)["x"]
    # On the short side a full span is everything; on the long side it is not.
    assert every.up.shape == (10, 4)


@pytest.mark.parametrize("file", ["first", "headline", "sweep", "identity", "samples"])
def test_shipped_sweeps_are_of_the_shipped_recipe(file):
    recipe = read_yaml(CONFIGS / "digits.yaml", Recipe)
    sweep = read_yaml(CONFIGS / f"{file}.yaml", Sweep)
    assert all(recipe.base(name) for name in sweep.targets)
    assert all(recipe.adapter(name) for name in sweep.adapters)
    arms = sweep.arms()
    assert len({arm.name for arm in arms}) == len(arms)
    assert all(MigrationOptions(**arm.options) for arm in arms)
    for base in recipe.bases:
        assert base.data in data.TRANSFORMS
        assert not base.parent or recipe.base_hash(base.parent) != recipe.base_hash(base.name)
    for adapter in recipe.adapters:
        known = {"style": data.TRANSFORMS, "concept": data.CONCEPTS, "speed": ["fast"]}
        assert adapter.name in known[adapter.kind]
