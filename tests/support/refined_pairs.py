"""Two tiny pipelines and an adapter of the first, refined; and what torch's nets would teach."""

from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_pipelines
import torch
from numpy.testing import assert_allclose

import prolora_jax as pl
from prolora_jax.nets.adapters.tree import spec_of
from prolora_jax.refine.job import effect
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.job.refined import PairRefinement, RefinedAdapter, ToRefine

SIDE = tiny_pipelines.SIZE // 2
PROMPTS = ("a drawing in ink", "paper, folded")
OWN = ("a stone",)
RECIPE = RefineRecipe(
    prompts=PROMPTS,
    kind="concept",
    rows=24,
    pictures=6,
    draw_steps=2,
    size=(SIDE, SIDE),
    noises=2,
    steps=12,
    batch=8,
)


@cache
def loaded(folder: Path) -> Any:
    """A pipeline: programs that were compiled for it are found again."""
    return pl.load_pipeline(folder)


class Pair(NamedTuple):
    """A source and a target as torch's and as ours, and an adapter of the source."""

    source: Any
    target: Any
    folders: tuple[Path, Path]
    given: pl.Adapter
    copied: pl.Adapter

    def run(self, work: Path, recipe: RefineRecipe = RECIPE) -> RefinedAdapter:
        source, target = (partial(loaded, folder) for folder in self.folders)
        todo = ToRefine(self.given, self.copied, {}, OWN, "one")
        (done,) = PairRefinement(source, target, recipe, work, "pair").refine([todo])
        return done


def made_adapter(params: Any, seed: int, texts: tuple[str, ...] = ()) -> pl.Adapter:
    """Rank 2 on attention, and on one convolution; of a text encoder on modules with these ends."""
    rng = np.random.default_rng(seed)
    modules = []
    for path, module in sorted(spec_of(params).modules.items()):
        if not path.endswith(("to_q", "to_v", "resnets.0.conv1", *texts)):
            continue
        out, width, *window = module.shape
        ones = (1,) * len(window)
        down = rng.standard_normal((2, width, *window)) / np.sqrt(width * np.prod(window))
        up = rng.standard_normal((out, 2, *ones))
        first, second = (0.7 * x.astype(np.float32) for x in (down, up))
        modules.append(pl.LoraModule(path, first, second, 2.0))
    return pl.Adapter(tuple(modules), "diffusers")


def made_pair(folder: Path, *kinds: str) -> Pair:
    """Two tiny pipelines of these kinds, and an adapter of the first."""
    places = folder / "source", folder / "target"
    first, second = (
        tiny_pipelines.make_pipeline(place, base, seed=seed, short=True)
        for seed, (place, base) in enumerate(zip(places, kinds, strict=True))
    )
    source, target = (pl.load_base_model(place) for place in places)
    given = made_adapter(loaded(places[0])[1], 1)
    copied, _ = pl.migrate(given, source, target, pl.MigrationOptions(method="copy"))
    return Pair(first, second, places, given, copied)


def torch_says(pipe: Any, rows: Any, times: np.ndarray) -> np.ndarray:
    """Predictions of torch's pipeline for rows that name their prompts."""
    prompts = [["", *PROMPTS, *OWN][i] for i in rows.conditioning]
    more: dict[str, Any] = {}
    with torch.no_grad():
        if hasattr(pipe, "text_encoder_2"):
            text, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
            sizes = torch.tensor([[2 * SIDE, 2 * SIDE, 0, 0, 2 * SIDE, 2 * SIDE]] * len(prompts))
            more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        else:
            text, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
        found = pipe.unet(torch.tensor(rows.noisy), torch.tensor(times), text, **more)
    return found.sample.numpy()


class Lesson(NamedTuple):
    """What a student was shown and how it was answered, and what came of it."""

    rows: Any
    done: RefinedAdapter


def taught(pair: Pair, work: Path) -> Lesson:
    """A refinement, and the rows that its student was shown."""
    lesson, seen = effect.lesson, []

    def kept(*given: Any) -> Any:
        seen.append(lesson(*given))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effect, "lesson", kept)
        done = pair.run(work)
    return Lesson(seen[0], done)


def require_torchs_teacher(pair: Pair, rows: Any) -> None:
    """What a student is to say, against predictions of three torch nets."""
    times = np.float32(999) * rows.times
    first, second = (loaded(folder)[0].sampler.config.kept for folder in pair.folders)
    assert_allclose(first, second)  # or the source would be asked at other times
    plain, target = torch_says(pair.source, rows, times), torch_says(pair.target, rows, times)
    unet = {m.path.removeprefix("unet."): m for m in pair.given.modules}

    def shift(sign: float) -> None:
        for name, module in unet.items():
            weight = pair.source.unet.get_submodule(name).weight
            delta = module.up.reshape(module.up.shape[0], -1) @ module.down.reshape(2, -1)
            weight += sign * torch.tensor(delta * module.scale).reshape(weight.shape)

    with torch.no_grad():
        shift(1)
        adapted = torch_says(pair.source, rows, times)
        shift(-1)
    changed = adapted - plain
    assert np.abs(changed).max() > 0.01
    assert pair.source.scheduler.config.prediction_type == "epsilon"
    if pair.target.scheduler.config.prediction_type == "v_prediction":
        # v = e / a - s x / a, so that the adapter changes it by 1 / a of what it changes of e.
        kept = pair.target.scheduler.alphas_cumprod.numpy()
        signal = np.sqrt(np.interp(times, np.arange(1000), kept))
        changed /= signal.reshape(-1, 1, 1, 1)
    want = target + changed
    assert_allclose(rows.target, want, rtol=0, atol=1e-4 * np.abs(want).max())
