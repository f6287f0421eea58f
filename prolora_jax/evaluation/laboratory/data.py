"""What the laboratory's models are shown: digits, known transforms of them, and simple shapes.

The digits are scikit-learn's copy of the test part of "Optical Recognition of Handwritten Digits"
(E. Alpaydin, C. Kaynak; UCI Machine Learning Repository, doi 10.24432/C50P49, CC BY 4.0).

Pictures are `(n, 8, 8)` in [-1, 1], paper -1 and ink 1. The nets see them as latents
`(n, 4, 4, 4)`: each 2x2 patch becomes four channels, an exact stand-in for a VAE that makes
attention over all places of a picture cheap.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

SIDE = 8
CLASSES = 10
RARE = 3
"""Words beside the digits; hardly ever used in training, they are free to be bound to a concept."""
NULL = CLASSES + RARE
"""The word for "anything", used for guidance."""
WORDS = NULL + 1
TOKENS, TEXT_WIDTH = 4, 32

Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pictures:
    """Pictures and the word that each is shown with.

    Attributes:
        pixels: float32 `(n, 8, 8)` in [-1, 1].
        words: integers `(n,)`; a digit's word is the digit.
    """

    pixels: np.ndarray
    words: np.ndarray

    def changed(self, transform: Transform) -> "Pictures":
        """The same pictures after a transform."""
        return Pictures(transform(self.pixels).astype(np.float32), self.words)

    def taken(self, places: np.ndarray) -> "Pictures":
        """Some of the pictures."""
        return Pictures(self.pixels[places], self.words[places])


def load_pictures(seed: int = 0, held_out: float = 0.3) -> tuple[Pictures, Pictures]:
    """The digits, shuffled and split.

    Args:
        seed: of the shuffle.
        held_out: share of the second part.

    Returns:
        Pictures to train on, and pictures no model ever sees.
    """
    # Only training needs it (the extra `lab`); trained models are evaluated from their files.
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

    images, words = load_digits(return_X_y=True)
    pixels = (np.asarray(images).reshape(-1, SIDE, SIDE) / 8 - 1).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(pixels))
    cut = round(len(pixels) * (1 - held_out))
    every = Pictures(pixels, np.asarray(words, np.int32))
    return every.taken(order[:cut]), every.taken(order[cut:])


def to_latents(pixels: np.ndarray) -> np.ndarray:
    """`(n, 8, 8)` -> `(n, 4, 4, 4)`: channel `2 * dy + dx` is pixel `(dy, dx)` of each patch."""
    half = SIDE // 2
    patches = pixels.reshape(-1, half, 2, half, 2)
    return np.ascontiguousarray(patches.transpose(0, 2, 4, 1, 3).reshape(-1, 4, half, half))


def to_pixels(latents: np.ndarray) -> np.ndarray:
    """Inverse of `to_latents`."""
    half = SIDE // 2
    patches = latents.reshape(-1, 2, 2, half, half)
    return np.ascontiguousarray(patches.transpose(0, 3, 1, 4, 2).reshape(-1, SIDE, SIDE))


def text_table(seed: int = 2024) -> np.ndarray:
    """The frozen "text encoder" of all models: `(WORDS, TOKENS, TEXT_WIDTH)`.

    The first token is the same for all words, as the start token of a real encoder is.
    """
    table = np.random.default_rng(seed).standard_normal((WORDS, TOKENS, TEXT_WIDTH))
    table[:, 0] = table[0, 0]
    return table.astype(np.float32)


def _sheared(pixels: np.ndarray) -> np.ndarray:
    rows = [np.roll(pixels[:, y], round((3.5 - y) / 1.5), axis=-1) for y in range(SIDE)]
    return np.stack(rows, axis=1)


def _thickened(pixels: np.ndarray) -> np.ndarray:
    right = np.maximum(pixels[:, :, 1:], pixels[:, :, :-1])
    wide = np.concatenate((pixels[:, :, :1], right), axis=2)
    return np.concatenate((wide[:, :1], np.maximum(wide[:, 1:], wide[:, :-1])), axis=1)


def _dimmed(pixels: np.ndarray) -> np.ndarray:
    return 0.7 * (pixels + 1) - 1


def _striped(pixels: np.ndarray) -> np.ndarray:
    striped = pixels.copy()
    striped[:, 1::2] = -1
    return striped


TRANSFORMS: Mapping[str, Transform] = {
    "none": lambda pixels: pixels,
    "invert": lambda pixels: -pixels,
    "shear": _sheared,
    "thicken": _thickened,
    "stripes": _striped,
    "dim": _dimmed,
    "turn": lambda pixels: np.rot90(pixels, axes=(1, 2)).copy(),
    "blur": lambda pixels: (
        0.5 * pixels + 0.125 * sum(np.roll(pixels, s, a) for s in (1, -1) for a in (1, 2))
    ),
}
"""Styles, and what tells the data of fine-tuned targets from the source's."""

CONCEPTS = ("cross", "ring", "steps")


def draw_concept(name: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Pictures of a shape at varying places, sizes and strengths, `(count, 8, 8)`.

    Args:
        name: one of `CONCEPTS`.
        count: how many.
        rng: of everything that varies.

    Returns:
        float32 in [-1, 1].

    Raises:
        KeyError: there is no such concept.
    """
    y, x = np.mgrid[:SIDE, :SIDE]
    centre = rng.uniform(2.7, 4.3, (2, count, 1, 1))
    size = rng.uniform(2.0, 3.2, (count, 1, 1))
    dy, dx = np.abs(y - centre[0]), np.abs(x - centre[1])
    if name == "cross":
        far = np.minimum(dy, dx) + 3 * np.maximum(np.maximum(dy, dx) - size, 0)
    elif name == "ring":
        far = np.abs(np.hypot(dy, dx) - size)
    elif name == "steps":
        far = np.abs((y + x) % 4 - 1.5) + rng.uniform(-0.3, 0.3, (count, 1, 1))
    else:
        raise KeyError(f"no concept {name!r}; there are {', '.join(CONCEPTS)}")
    ink = np.clip(1.4 - far, 0, 1) * rng.uniform(0.75, 1.0, (count, 1, 1))
    return (2 * ink - 1).astype(np.float32)


def concept_word(name: str) -> int:
    """The rare word that a concept is bound to."""
    return CLASSES + CONCEPTS.index(name)


def concept_pictures(name: str, count: int, seed: int) -> Pictures:
    """Pictures of a concept with its word."""
    pixels = draw_concept(name, count, np.random.default_rng(seed))
    return Pictures(pixels, np.full(count, concept_word(name), np.int32))
