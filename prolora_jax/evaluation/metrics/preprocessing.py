"""Pictures as each encoder was shown them in training: resized, cut or framed, normalised.

Resizing is Pillow's own, on bytes, as transformers' `CLIPImageProcessor` and torchvision have it:
a bicubic kernel that widens when a picture shrinks (antialiasing), rounded to whole numbers.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image

from prolora_jax.errors import Refusal, UsageError

Prepared = Float[np.ndarray, "side side 3"]
"""What `prepare` makes: channels last."""

Fit = Literal["cut", "cut-rounded", "frame"]
"""What happens to a picture that is not square. `cut`: its short side is fitted, and the middle cut
out, half pixels going down (transformers). `cut-rounded`: half pixels go to the even number
(torchvision, so CSD). `frame`: its long side is fitted, and the rest is black (HPSv2)."""

_CLIP_MEAN, _CLIP_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How pictures are made ready for an encoder.

    Attributes:
        side: height and width in pixels of what comes out.
        resized: what the short side is resized to before the middle is cut out; of `frame` the
            long side, and then equal to `side`.
        mean: taken off each channel, whose values are from 0 to 1.
        std: what the rest is divided by.
        fit: what happens to a picture that is not square.
    """

    side: int
    resized: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "cut"


CLIP = Preprocessing(224, 224, _CLIP_MEAN, _CLIP_STD)
"""OpenAI's and OpenCLIP's encoders, by transformers' `CLIPImageProcessor`."""

CSD = Preprocessing(224, 224, _CLIP_MEAN, _CLIP_STD, fit="cut-rounded")
"""CSD, by torchvision as its authors use it."""

HPS = Preprocessing(224, 224, _CLIP_MEAN, _CLIP_STD, fit="frame")
"""HPSv2 and v2.1. Its authors resize numbers instead of bytes, without rounding: what they get
differs by less than a third of a step of 255 on average."""

DINOV2 = Preprocessing(224, 256, _IMAGENET_MEAN, _IMAGENET_STD)
"""DINOv2, by the `preprocessor_config.json` beside its weights."""

LPIPS = Preprocessing(256, 256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""LPIPS, which takes values from -1 to 1. Its authors compare patches of 64 pixels, others whole
pictures of 256, as here: distances depend on it."""


def prepare(picture: Image.Image, how: Preprocessing) -> Prepared:
    """A picture as an encoder takes it.

    Args:
        picture: of any size and mode; it is made RGB, transparency is dropped.
        how: of the encoder.

    Returns:
        float32, channels last.

    Raises:
        UsageError: one side would get shorter than a pixel.
    """
    width, height = picture.size
    fitted = max(width, height) if how.fit == "frame" else min(width, height)
    shape = _scaled(width, how, fitted), _scaled(height, how, fitted)
    if min(shape) < 1:
        raise UsageError(
            f"picture of {width} x {height} pixels: expected one whose long side is at most "
            f"{how.resized} times the short one; cut it",
            code=Refusal.BAD_OPTION,
        )
    colours = picture.convert("RGB").resize(shape, Image.Resampling.BICUBIC)
    square = _framed(colours, how) if how.fit == "frame" else _cut(colours, how)
    # In float64 and rounded, as transformers has it: bit for bit the same numbers.
    values = (np.asarray(square, np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.asarray(x, np.float32)[None, None] for x in (how.mean, how.std))
    return (values - mean) / std


def picture_of(values: Float[np.ndarray, "height width 3"]) -> Image.Image:
    """A drawn picture in bytes.

    Args:
        values: from 0 to 1; what lies outside is cut off.

    Raises:
        UsageError: a value is no number.
    """
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise UsageError(
            f"picture of shape {values.shape}: found {wrong} values that are no finite numbers; "
            f"expected numbers from 0 to 1; draw it again",
            code=Refusal.NON_FINITE,
        )
    return Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))


def _scaled(length: int, how: Preprocessing, fitted: int) -> int:
    """A side after resizing; the authors round the framed ones, and cut off the others."""
    if how.fit == "frame":
        return round(length * (how.resized / fitted))
    return how.resized if length == fitted else int(how.resized * length / fitted)


def _cut(colours: Image.Image, how: Preprocessing) -> Image.Image:
    left, top = ((length - how.side) / 2 for length in colours.size)
    if how.fit == "cut-rounded":
        left, top = round(left), round(top)
    left, top = int(left), int(top)
    return colours.crop((left, top, left + how.side, top + how.side))


def _framed(colours: Image.Image, how: Preprocessing) -> Image.Image:
    square = Image.new("RGB", (how.side, how.side))
    left, top = ((how.side - length) // 2 for length in colours.size)
    square.paste(colours, (left, top))
    return square
