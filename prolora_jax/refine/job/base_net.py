"""A base model on the device: the samples that it draws, and what it says of rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.engines.progress import Progress
from prolora_jax.nets.adapters.lora import Scale, attach
from prolora_jax.nets.adapters.tree import spec_of
from prolora_jax.nets.pipelines.answers import answers, draw_latents, embedded
from prolora_jax.nets.pipelines.devices import on_all
from prolora_jax.nets.pipelines.pipeline import Pipeline, Told
from prolora_jax.nets.sampling import levels
from prolora_jax.nets.unet.loading import Params
from prolora_jax.refine.job.devices import mesh_for
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.parametrisation import Parametrisation, converted, predicted
from prolora_jax.refine.rows import NoisyRows, Rows, SamplePool

GUARD_ROWS = 512
"""Noised samples, at most, that each of the guard's losses is a mean over."""
EMPTY = 0
"""Place of the prompt that says nothing; the words come after it."""
_ROOM = 16
"""Prompts are filled up to multiples of it: adapters with more words or fewer share programs."""


@dataclass(frozen=True, eq=False)
class Shown:
    """How rows are noised, as the target's training was: both nets are shown the same.

    Attributes:
        kept: what is left of a picture's variance at each time of the target's training.
        predicts: the parametrisation in which answers are compared: the target's.
    """

    kept: Float[np.ndarray, " times"]
    predicts: Parametrisation

    @property
    def last(self) -> float:
        """The last time."""
        return float(len(self.kept) - 1)

    def levels(self, times: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Signal and noise at times from 0 to 1."""
        return levels.signal_and_noise(self.kept, times * self.last)

    def exam(self, pool: SamplePool, seed: int) -> Rows:
        """Noised samples, and what a net that knows them would say: for the guard's losses."""
        rng = np.random.default_rng(seed)
        size = min(GUARD_ROWS, 4 * len(pool.clean))
        places = np.resize(rng.permutation(len(pool.clean)), size)
        clean, told = pool.clean[places], pool.conditioning[places]
        times = ((np.arange(size) + rng.random(size)) / size).astype(np.float32)
        signal, noise = (x.reshape(-1, 1, 1, 1) for x in self.levels(times))
        added = rng.standard_normal(clean.shape, np.float32)
        target = predicted(self.predicts, clean, added, signal, noise)
        return Rows(signal * clean + noise * added, times, told, np.asarray(target))


class Spoken(NamedTuple):
    """What a base model is told, and the adapters that it uses: who speaks.

    Attributes:
        told: what its UNet is told of each prompt, a row for each.
        scales: of adapters in its parameters.
        words: number of prompts, without the empty one.
    """

    told: Told
    scales: dict[str, Scale]
    words: int


@dataclass(frozen=True, eq=False)
class BaseNet:
    """A base model on the device.

    Attributes:
        name: `source` or `target`, for messages.
        pipeline: its nets.
        params: of all components, with an adapter beside the kernels where there is one.
        recipe: how samples are drawn.
        progress: called with (what, done, total).
        mesh: devices that rows are spread over; all have the parameters.
    """

    name: str
    pipeline: Pipeline
    params: Params
    recipe: RefineRecipe
    progress: Progress
    mesh: Mesh | None

    @classmethod
    def placed(
        cls,
        name: str,
        loaded: tuple[Pipeline, Params],
        recipe: RefineRecipe,
        progress: Progress,
    ) -> "BaseNet":
        """A base model on as many devices as its rows can be spread over.

        Args:
            name: `source` or `target`, for messages.
            loaded: of `load_pipeline`; the VAE's parameters are let go, as nothing here is decoded.
            recipe: how samples are drawn.
            progress: called with (what, done, total).
        """
        pipeline, params = loaded
        used = {part: tree for part, tree in params.items() if part != "vae"}
        mesh = mesh_for(recipe)
        return cls(name, pipeline, on_all(used, mesh), recipe, progress, mesh)

    def beside(self, name: str, adapter: Adapter) -> "BaseNet":
        """The same with an adapter beside its kernels.

        Args:
            name: by which scales name it.
            adapter: for this base model.
        """
        family = spec_of(self.params).family
        params = attach(self.params, {name: adapter}, assume_base=family)
        return replace(self, params=on_all(params, self.mesh))

    @cached_property
    def shown(self) -> Shown:
        """The noise of its training, and what it predicts."""
        sampler = self.pipeline.sampler
        return Shown(sampler.config.kept, levels.prediction_of(sampler, self.name))

    def spoken(self, words: Sequence[str], scales: dict[str, Scale] | None = None) -> Spoken:
        """Who answers, with each prompt as the base model's own text encoders see it.

        Args:
            words: the prompts, without the empty one.
            scales: of adapters, if any.
        """
        used = scales or {}
        some = ["", *words]
        some += [""] * (-len(some) % _ROOM)
        told = embedded(self.pipeline, self.params, some, used)
        return Spoken(told, used, len(words))

    def pool(
        self,
        who: Spoken,
        places: Int[np.ndarray, " n"],
        first_seed: int,
        stage: str,
        size: tuple[int, int],
    ) -> SamplePool:
        """Draw samples.

        Args:
            who: what is told, and adapters.
            places: the prompt of each.
            first_seed: of their noise.
            stage: what to call it.
            size: height and width in latents.
        """
        recipe = self.recipe
        latents = draw_latents(
            self.pipeline,
            self.params,
            who.told,
            places,
            [first_seed + i for i in range(len(places))],
            scales=who.scales,
            size=size,
            steps=recipe.draw_steps,
            guidance=recipe.guidance,
            empty=EMPTY,
            at_once=recipe.asked_at_once(size),
            mesh=self.mesh,
            count=self._count(stage),
        )
        return SamplePool(latents, places.astype(np.int32))

    def answers(self, rows: NoisyRows, who: Spoken, shown: Shown, stage: str) -> np.ndarray:
        """What it says of rows, in the parametrisation they are compared in.

        Args:
            rows: with times from 0 to 1.
            who: what is told, and adapters.
            shown: how the rows were noised, and what is to be said of them.
            stage: what to call it.
        """
        mine = self.shown
        times = levels.same_noise(shown.kept, mine.kept, rows.times * shown.last)
        said = answers(
            self.pipeline,
            self.params,
            who.told,
            rows.noisy,
            times,
            rows.conditioning,
            scales=who.scales,
            at_once=self.recipe.asked_at_once(rows.noisy.shape[2:]),
            mesh=self.mesh,
            count=self._count(stage),
        )
        signal, noise = (x.reshape(-1, 1, 1, 1) for x in shown.levels(rows.times))
        return np.asarray(
            converted(said, rows.noisy, signal, noise, of=mine.predicts, to=shown.predicts)
        )

    def loss(self, pool: SamplePool, who: Spoken, shown: Shown, seed: int) -> float:
        """Mean squared error on noised samples: one of the guard's four losses.

        Args:
            pool: the samples.
            who: what is told.
            shown: how they are noised.
            seed: of times and noise; the same for both nets.
        """
        exam = shown.exam(pool, seed)
        asked = NoisyRows(exam.noisy, exam.times, exam.conditioning)
        said = self.answers(asked, who, shown, f"{self.name}: losses on samples")
        return float(np.mean((said.astype(np.float64) - exam.target) ** 2))

    def _count(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(stage, done, total)
