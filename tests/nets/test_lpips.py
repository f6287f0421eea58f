"""LPIPS against its formula in torch's functions, with random weights of torch's layout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from numpy.testing import assert_allclose, assert_array_equal

from prolora_jax.architectures.flax_trees import leaves
from prolora_jax.architectures.vision.lpips import lpips_to_flax
from prolora_jax.errors import UsageError
from prolora_jax.nets.vision.lpips import WIDTHS, Lpips

RTOL = 1e-5  # float32 sums in another order
# VGG16 as its paper lists it: convolutions by their stage, and "pool".
LAYERS = (0, 0, "pool", 1, 1, "pool", 2, 2, 2, "pool", 3, 3, 3, "pool", 4, 4, 4)
TINY = (4, 6, 8, 5, 7)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def random_tensors(widths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The trunk in torchvision's names, and the heads in those of lpips' own file."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    number, before = 0, 3
    for layer in LAYERS:
        if layer == "pool":
            number += 1
            continue
        width = widths[int(layer)]
        spread = (2 / (9 * before)) ** 0.5
        kernel = torch.randn((width, before, 3, 3), generator=generator) * spread
        tensors[f"features.{number}.weight"] = kernel
        tensors[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
        number, before = number + 2, width
    for stage, width in enumerate(widths):
        tensors[f"lin{stage}.model.1.weight"] = torch.rand((1, width, 1, 1), generator=generator)
    return tensors


def by_formula(tensors: dict[str, torch.Tensor], *pictures: np.ndarray) -> np.ndarray:
    """LPIPS of two batches, written from the paper."""
    features: list[list[torch.Tensor]] = []
    for picture in pictures:
        hidden = torch.from_numpy(picture).permute(0, 3, 1, 2)
        shift, scale = (torch.tensor(x)[None, :, None, None] for x in (SHIFT, SCALE))
        hidden, number, found = (hidden - shift) / scale, 0, []
        for layer, after in zip(LAYERS, (*LAYERS[1:], "pool"), strict=True):
            if layer == "pool":
                hidden, number = F.max_pool2d(hidden, 2), number + 1
                continue
            weight, bias = (tensors[f"features.{number}.{x}"] for x in ("weight", "bias"))
            hidden, number = F.relu(F.conv2d(hidden, weight, bias, padding=1)), number + 2
            if after == "pool":
                found.append(F.normalize(hidden, dim=1))
        features.append(found)
    total = torch.zeros(len(pictures[0]))
    for stage, (one, other) in enumerate(zip(*features, strict=True)):
        weights = tensors[f"lin{stage}.model.1.weight"]
        total += ((one - other) ** 2 * weights).sum(1).mean((1, 2))
    return total.numpy()


def numpy_of(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in tensors.items()}


def some_pictures(side: int, batch: int = 2) -> np.ndarray:
    shape = (batch, side, side + 3, 3)
    return np.random.default_rng(side).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def tiny() -> tuple[dict[str, torch.Tensor], Any]:
    tensors = random_tensors(TINY)
    return tensors, jax.tree.map(jnp.asarray, lpips_to_flax(numpy_of(tensors)))


def test_distances_equal_the_formula(tiny):
    tensors, params = tiny
    one, other = some_pictures(33), some_pictures(34)[:, :33, :36]
    want = by_formula(tensors, one, other)
    assert want.min() > 0.01
    found = jax.jit(Lpips(TINY).apply)({"params": params}, one, other)
    assert_allclose(np.asarray(found), want, rtol=RTOL)


def test_the_real_net_equals_the_formula():
    tensors = random_tensors(WIDTHS)
    one, other = some_pictures(16, 1), some_pictures(17, 1)[:, :16, :19]
    params = lpips_to_flax(numpy_of(tensors))
    made: Any = jax.eval_shape(Lpips().init, jax.random.key(0), one, other)
    want = {place: leaf.shape for place, leaf in leaves(params)}
    assert {place: leaf.shape for place, leaf in leaves(made["params"])} == want
    assert want["features/28/kernel"] == (3, 3, 512, 512)
    found = jax.jit(Lpips().apply)({"params": jax.tree.map(jnp.asarray, params)}, one, other)
    assert_allclose(np.asarray(found), by_formula(tensors, one, other), rtol=RTOL)


def test_a_metric_orders_and_mirrors(tiny):
    net, params = Lpips(TINY), {"params": tiny[1]}
    picture = some_pictures(32, 1)
    noise = np.random.default_rng(1).standard_normal(picture.shape).astype(np.float32)
    worse = np.concatenate([picture + s * noise for s in (0.0, 0.05, 0.2, 0.8)])
    look = jax.jit(lambda given: net.apply(params, given, method=net.look))
    looked, alone = look(worse), look(picture)
    found = np.asarray(net.apply(params, alone, looked, method=net.apart))
    assert found[0] < 1e-12  # batches of other sizes round otherwise
    assert (np.diff(found) > 0).all()
    back = np.asarray(net.apply(params, looked, alone, method=net.apart))
    assert_array_equal(found, back)


def test_every_layout_is_the_same_tree(tiny):
    tensors = numpy_of(tiny[0])
    # As `lpips.LPIPS(net="vgg").state_dict()` has it: parts between two looks, heads twice.
    parts = (0, 4, 9, 16, 23, 30)
    whole = {"scaling_layer.shift": np.zeros((1, 3, 1, 1))}
    for key, tensor in tensors.items():
        if key.startswith("features."):
            number, leaf = key.removeprefix("features.").split(".")
            part = sum(int(number) >= first for first in parts)
            whole[f"net.slice{part}.{number}.{leaf}"] = tensor
        else:
            whole[key] = whole[key.replace("lin", "lins.", 1)] = tensor
    classifier = {"classifier.0.weight": np.zeros((2, 2))}
    want = dict(leaves(lpips_to_flax(tensors)))
    for other in (whole, tensors | classifier):
        found = dict(leaves(lpips_to_flax(other)))
        assert {*found} == {*want}
        for place, array in want.items():
            assert_array_equal(found[place], array)


def test_pictures_that_are_too_small():
    small = jax.ShapeDtypeStruct((1, 15, 40, 3), np.float32)
    with pytest.raises(UsageError, match="15 x 40 pixels: expected at least 16 x 16 for LPIPS"):
        jax.eval_shape(Lpips(TINY).init, jax.random.key(0), small, small)
