"""Pictures that a target makes with an adapter, measured against pictures that show the effect."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prolora_jax.evaluation.laboratory.adapters import TrainedFactors
from prolora_jax.evaluation.laboratory.classifier import Classifier, train_classifier
from prolora_jax.evaluation.laboratory.data import CLASSES, Pictures, to_pixels
from prolora_jax.evaluation.laboratory.diffusion import Predict, sample
from prolora_jax.evaluation.laboratory.distillation import GUIDANCE, STRIDES
from prolora_jax.evaluation.laboratory.lessons import effect_pictures, own_pictures, sampled_words
from prolora_jax.evaluation.laboratory.workshop import Workshop, picture_grid
from prolora_jax.evaluation.metrics.shares import diversity, squared_mmd
from prolora_jax.io import atomic

COUNT, STEPS = 200, 20


@dataclass(frozen=True)
class SampleResult:
    """What `COUNT` generated pictures are like.

    Attributes:
        effect_mmd: squared MMD to held-out pictures with the effect (`measures.squared_mmd`, scale
            the median distance of the held-out features, in the classifier's features).
        own_mmd: the same to the target's own held-out pictures without the effect.
        fidelity: share whose class is the word they were made with.
        diversity: mean distance of their features over that of held-out pictures.
    """

    effect_mmd: float
    own_mmd: float
    fidelity: float
    diversity: float


class SampleExam:
    """How pictures of one effect on one target are judged.

    Args:
        workshop: where the target was trained.
        target: name of the base model.
        adapter: name of the adapter.
    """

    def __init__(self, workshop: Workshop, target: str, adapter: str):
        self.workshop, self.target = workshop, target
        base = workshop.recipe.base(target)
        self.adapter = workshop.recipe.adapter(adapter)
        split = workshop.split
        self.own = own_pictures(base, split.held_out)
        self.effect = self.own
        shown = own_pictures(base, split.train)
        if self.adapter.kind != "speed":
            self.effect = effect_pictures(base, self.adapter, split.held_out)
            taught = effect_pictures(base, self.adapter, split.train)
            # It has to know the plain digits, too: "no effect" must be far away in its features.
            shown = Pictures(
                np.concatenate((shown.pixels, taught.pixels)),
                np.concatenate((shown.words, taught.words)),
            )
        self.classifier: Classifier = train_classifier(shown)

    def pictures(self, factors: Mapping[str, TrainedFactors], count: int = COUNT, seed: int = 0):
        """Pictures of the target with an adapter, `(count, 8, 8)`, and their words."""
        return self.drawn(self.workshop.predict(self.target, dict(factors)), count, seed)

    def drawn(self, predict: Predict, count: int = COUNT, seed: int = 0):
        """Pictures of any net in the target's place, and their words."""
        words = sampled_words(self.adapter, count)
        hastened = self.workshop.recipe.base(self.target).kind == "hasten"
        few = self.adapter.kind == "speed" or hastened
        steps, strength = (STRIDES, 1.0) if few else (STEPS, GUIDANCE)
        latents = sample(predict, words, steps=steps, seed=seed, strength=strength)
        return to_pixels(latents), words

    def judge(self, factors: Mapping[str, TrainedFactors]) -> SampleResult:
        """Measure the pictures that an adapter makes."""
        return self.judge_net(self.workshop.predict(self.target, dict(factors)))

    def judge_net(self, predict: Predict) -> SampleResult:
        """Measure the pictures of any net in the target's place."""
        pixels, words = self.drawn(predict)
        features, effect, own = (
            self.classifier.features(shown)
            for shown in (pixels, self.effect.pixels, self.own.pixels)
        )
        return SampleResult(
            effect_mmd=squared_mmd(features, effect),
            own_mmd=squared_mmd(features, own),
            fidelity=float(np.mean(self.classifier.words(pixels) == words)),
            diversity=diversity(features) / diversity(effect),
        )


def one_of_each(pixels: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The first picture of each digit, for a row of a grid; the first ten of a concept."""
    if len(set(words.tolist())) < CLASSES:
        return pixels[:CLASSES]
    return np.stack([pixels[words == digit][0] for digit in range(CLASSES)])


def write_grid(rows: Mapping[str, np.ndarray], path: Path) -> None:
    """One row of pictures for each name, as a PNG.

    Args:
        rows: pictures `(n, 8, 8)` by name, `n` the same everywhere.
        path: PNG to write.
    """
    grid = picture_grid(list(rows.values()), zoom=5)
    height, width = grid.shape
    figure = Figure(figsize=(width / 100 + 1.8, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    share = width / (width + 180)
    axis = figure.add_axes((1 - share, 0, share, 1))
    axis.imshow(grid, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
    axis.axis("off")
    for place, name in enumerate(rows):
        figure.text(0.01, 1 - (place + 0.5) / len(rows), name, va="center", fontsize=9)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    atomic.write_bytes(path, buffer.getvalue())
