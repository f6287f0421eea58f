"""The laboratory's folder: base models and adapters, each trained once and then found there.

    OUT/bases/NAME/{config.json, diffusion_pytorch_model.safetensors, trained.json}
    OUT/adapters/BASE/NAME-sSEED.{safetensors, json}

They are what a user's own files are: diffusers folders and diffusers adapters. The JSON file is
written last; with the hash of the recipe in it, it says that what stands beside it is finished.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from shutil import rmtree

import numpy as np

from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.evaluation.laboratory import train
from prolora_jax.evaluation.laboratory.adapters import (
    TrainedFactors,
    as_adapter,
    factors_of,
    merged,
    new_factors,
    total_norm,
)
from prolora_jax.evaluation.laboratory.data import load_pictures
from prolora_jax.evaluation.laboratory.diffusion import Draw, Predict, draw_denoising
from prolora_jax.evaluation.laboratory.distillation import draw_rows, draw_taught, jumps
from prolora_jax.evaluation.laboratory.lessons import (
    JUMPS,
    Split,
    draw_lesson,
    own_pictures,
    with_rare_words,
)
from prolora_jax.evaluation.laboratory.losses import exam, losses
from prolora_jax.evaluation.laboratory.nets import (
    Params,
    full_net,
    kept_blocks,
    predictor,
    pruned_net,
    pruned_params,
    shifted_params,
)
from prolora_jax.evaluation.laboratory.once import Answers, name_of
from prolora_jax.evaluation.laboratory.recipe import BaseRecipe, Recipe
from prolora_jax.io.adapters.files import load_adapter, save_adapter
from prolora_jax.io.documents import read_json, write_json
from prolora_jax.nets.unet.config import UNetConfig
from prolora_jax.nets.unet.loading import initial_params, load_unet, save_unet

Say = Callable[[str], None]


class Workshop:
    """Base models and adapters of one recipe in one folder.

    Args:
        folder: where everything stands.
        recipe: what to train.
        say: called with a line of progress.
        pictures: the digits; loaded from scikit-learn if None.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        say: Say = lambda line: None,
        pictures: Split | None = None,
    ):
        self.folder, self.recipe, self.say = folder, recipe, say
        self._pictures = pictures
        self._params = cache(self._load_params)
        self._answers = Answers()

    @cached_property
    def split(self) -> Split:
        """The digits."""
        return self._pictures or Split(*load_pictures())

    def config(self, name: str) -> UNetConfig:
        """The net of a base model."""
        base, width = self.recipe.base(name), self.recipe.width
        while base.kind in ("tune", "hasten"):
            base = self.recipe.base(base.parent)
        depth = self.recipe.root_of(name).depth or self.recipe.depth
        if base.kind == "prune":
            return pruned_net(width, depth)
        if base.kind == "shift":
            return full_net(width, len(kept_blocks(depth)))
        return full_net(width // 2 if base.kind == "narrow" else width, depth)

    def base_folder(self, name: str) -> Path:
        """Where a base model is, as `load_base_model` takes it."""
        return self.folder / "bases" / name

    def adapter_file(self, base: str, name: str, seed: int) -> Path:
        """Where an adapter is, as `load_adapter` takes it."""
        return self.folder / "adapters" / base / f"{name}-s{seed}.safetensors"

    def params(self, name: str) -> Params:
        """Parameters of a base model that has been trained."""
        return self._params(name)

    def _load_params(self, name: str) -> Params:
        return load_unet(self.base_folder(name))[1]

    def predict(
        self, name: str, factors: Mapping[str, TrainedFactors] | None = None, scale: float = 1.0
    ) -> Predict:
        """A base model that has been trained, with or without an adapter.

        What it has answered once it need not compute again.
        """
        given = factors or {}
        return self._answers.remembered(
            name_of(name, given, scale), lambda: self._net(name, given, scale)
        )

    def _net(self, name: str, factors: Mapping[str, TrainedFactors], scale: float = 1.0) -> Predict:
        return predictor(self.config(name), merged(self.params(name), factors, scale))

    def factors(self, base: str, name: str, seed: int) -> dict[str, TrainedFactors]:
        """An adapter that has been trained."""
        return factors_of(load_adapter(self.adapter_file(base, name, seed)))

    def make_base(self, name: str) -> bool:
        """Train a base model, its ancestors first; False when it was there."""
        recipe, note = self.recipe.base(name), self.base_folder(name) / "trained.json"
        digest = self.recipe.base_hash(name)
        if recipe.parent:
            self.make_base(recipe.parent)
        if _is_done(note, digest):
            return False
        rmtree(self.base_folder(name), ignore_errors=True)
        start = time.perf_counter()
        config, params = self.config(name), self._initial(recipe)
        curve = Curve(name, self.say)
        budget = train.Budget(recipe.steps, recipe.rate)
        trained = train.train_net(
            config, params, self._base_draw(recipe), budget, recipe.seed, curve
        )
        save_unet(self.base_folder(name), config, trained)
        held_out = own_pictures(recipe, self.split.held_out)
        loss = float(losses(self.predict(name), exam(held_out)).mean())
        seconds = round(time.perf_counter() - start, 1)
        write_json(
            note,
            {"hash": digest, "held_out_loss": loss, "seconds": seconds, "curve": curve.points},
        )
        return True

    def _initial(self, recipe: BaseRecipe) -> Params:
        if recipe.kind in ("train", "narrow"):
            return initial_params(self.config(recipe.name), seed=recipe.seed)
        params = self.params(recipe.parent)
        if recipe.kind == "prune":
            return pruned_params(params, self.config(recipe.name))
        if recipe.kind == "shift":
            return shifted_params(params, self.config(recipe.name))
        return params

    def _base_draw(self, recipe: BaseRecipe) -> Draw:
        own = with_rare_words(own_pictures(recipe, self.split.train))
        if recipe.kind == "hasten":
            return draw_rows(
                jumps(self.predict(recipe.parent), own, JUMPS, recipe.seed), self.recipe.batch
            )
        draw = draw_denoising(own, self.recipe.batch)
        if recipe.kind in ("prune", "shift", "narrow"):
            return draw_taught(draw, self._net(recipe.parent, {}))  # no batch comes twice
        return draw

    def teacher(self, base: str, name: str, seed: int) -> Predict:
        """Whose steps an adapter learns to take at once (see `lessons.draw_lesson`)."""
        recipe = self.recipe.base(base)
        if recipe.kind != "hasten":
            return self.predict(base)
        return self.predict(recipe.parent, self.factors(recipe.parent, name, seed))

    def make_adapter(self, base: str, name: str, seed: int) -> bool:
        """Train an adapter on a base model; False when it was there, or makes no sense there."""
        if not self.recipe.teaches(base, name):
            return False
        self.make_base(base)
        if self.recipe.base(base).kind == "hasten":
            self.make_adapter(self.recipe.base(base).parent, name, seed)
        file, digest = (
            self.adapter_file(base, name, seed),
            self.recipe.adapter_hash(base, name, seed),
        )
        note = file.with_suffix(".json")
        if _is_done(note, digest):
            return False
        start = time.perf_counter()
        recipe, config = self.recipe.adapter(name), self.config(base)
        draw = draw_lesson(
            self.recipe.base(base),
            recipe,
            self.split,
            self.teacher(base, name, seed),
            self.recipe.batch,
            seed,
        )
        curve = Curve(f"{base}: {name}-s{seed}", self.say)
        trained = train.train_adapter(
            config,
            self.params(base),
            new_factors(config, recipe.rank, seed, (recipe.modules,)),
            draw,
            train.Budget(recipe.steps, recipe.rate),
            seed,
            curve,
        )
        spec = spec_from_config(config.tensors, name=base)
        save_adapter(as_adapter(trained), file, base=spec, overwrite=True)
        write_json(
            note,
            {
                "hash": digest,
                "norm": total_norm(trained),
                "seconds": round(time.perf_counter() - start, 1),
                "curve": curve.points,
            },
        )
        return True


class Curve:
    """A learning curve, told as it grows.

    Args:
        name: of what is trained.
        say: called with a line of progress.
    """

    def __init__(self, name: str, say: Say):
        self.name, self.say = name, say
        self.points: list[tuple[int, float]] = []

    def __call__(self, step: int, loss: float) -> None:
        """One more point: a step, and the mean loss since the last one."""
        self.points.append((step, round(loss, 5)))
        self.say(f"{self.name}: step {step}, loss {loss:.4f}")


def _is_done(note: Path, digest: str) -> bool:
    found = read_json(note)
    return isinstance(found, dict) and found.get("hash") == digest


def picture_grid(rows: list[np.ndarray], zoom: int = 6) -> np.ndarray:
    """Pictures `(n, 8, 8)` a row as one grey picture, 8 bit, with a line between them."""
    lines = []
    for pixels in rows:
        grey = ((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)
        big = np.kron(grey, np.ones((1, zoom, zoom), np.uint8))
        big = np.pad(big, ((0, 0), (1, 1), (1, 1)), constant_values=90)
        lines.append(np.concatenate(list(big), axis=1))
    return np.concatenate(lines, axis=0)
