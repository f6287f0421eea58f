"""Preprocessing against transformers' processors and torch, on scikit-learn's photographs."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from prolora_jax.errors import UsageError
from prolora_jax.evaluation.metrics import preprocessing
from prolora_jax.evaluation.metrics.preprocessing import prepare

# Crops of two photographs of 427 x 640: wide, high, odd, small enough to be enlarged, square.
CUTS = [(640, 427), (301, 427), (333, 222), (90, 131), (256, 256)]
STEP = 1 / 255


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    images = [Image.fromarray(image) for image in load_sample_images().images]
    return [images[i % 2].crop((0, 0, *size)) for i, size in enumerate(CUTS)]


def by_transformers(processor: Any, picture: Image.Image) -> np.ndarray:
    return processor(images=picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


def test_clip_is_transformers_bit_for_bit(photographs):
    processor = CLIPImageProcessorPil()
    for picture in photographs:
        assert_array_equal(
            prepare(picture, preprocessing.CLIP), by_transformers(processor, picture)
        )


def test_dinov2_is_transformers_bit_for_bit(photographs):
    # As the file beside the weights has it.
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    for picture in photographs:
        assert_array_equal(
            prepare(picture, preprocessing.DINOV2), by_transformers(processor, picture)
        )


def normalised(values: torch.Tensor) -> np.ndarray:
    mean, std = preprocessing.CLIP.mean, preprocessing.CLIP.std
    return (values.numpy() - np.asarray(mean)) / np.asarray(std)


def by_torch(picture: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Resized as torchvision resizes tensors, values from 0 to 1, channels last."""
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    found = torch.nn.functional.interpolate(values, size=size, mode="bicubic", antialias=True)
    return found[0].permute(1, 2, 0)


def assert_but_for_rounding(found: np.ndarray, want: np.ndarray) -> None:
    """Bytes against numbers: Pillow rounds, and cuts off, after each of its two passes."""
    apart = np.abs(found - want) * 0.26 / STEP
    assert apart.mean() < 1 / 3
    assert (apart > 1.5).mean() < 1e-3


def test_csd_cuts_as_torchvision(photographs):
    for picture in photographs:
        width, height = picture.size
        short = min(width, height)
        size = (int(224 * height / short), int(224 * width / short))
        top, left = (round((length - 224) / 2) for length in size)
        want = by_torch(picture, size)[top : top + 224, left : left + 224].clip(0, 1)
        found = prepare(picture, preprocessing.CSD)
        assert_but_for_rounding(found, normalised(want))


def test_hps_frames_as_its_authors(photographs):
    for picture in photographs:
        width, height = picture.size
        scale = 224 / max(width, height)
        size = (round(height * scale), round(width * scale))
        want = torch.zeros(224, 224, 3)
        top, left = ((224 - length) // 2 for length in size)
        want[top : top + size[0], left : left + size[1]] = by_torch(picture, size).clip(0, 1)
        found = prepare(picture, preprocessing.HPS)
        assert_but_for_rounding(found, normalised(want))


def test_lpips_has_values_from_minus_one_to_one(photographs):
    found = prepare(photographs[0], preprocessing.LPIPS)
    assert found.shape == (256, 256, 3)
    assert found.min() >= -1
    assert found.max() <= 1
    assert found.std() > 0.3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_are_made_rgb(photographs, mode):
    picture = photographs[4].convert(mode)
    found = prepare(picture, preprocessing.CLIP)
    assert_array_equal(found, prepare(picture.convert("RGB"), preprocessing.CLIP))


def test_a_picture_without_a_middle():
    line = Image.new("RGB", (1000, 1))
    with pytest.raises(UsageError, match="1000 x 1 pixels: expected one whose long side is at"):
        prepare(line, preprocessing.HPS)


def test_drawn_pictures_become_bytes():
    values = np.linspace(-0.2, 1.2, 27).reshape(3, 3, 3)
    found = np.asarray(preprocessing.picture_of(values))
    assert_array_equal(found, np.round(values.clip(0, 1) * 255))
    values[1, 1, 1] = np.nan
    with pytest.raises(UsageError, match=r"shape \(3, 3, 3\): found 1 values that are no finite"):
        preprocessing.picture_of(values)
