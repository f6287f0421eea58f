"""Axis permutations, on numbers that show where they went."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from prolora_jax import layout

LINEAR = (3, 5)
POINTWISE = (3, 5, 1, 1)
CONV = (3, 5, 2, 4)  # a window that is not square shows swapped kh and kw
RANK = 2


def counting(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("shape", [LINEAR, POINTWISE, CONV])
def test_a_weight_becomes_a_matrix_and_back(shape):
    weight = counting(*shape)
    matrix = layout.weight_to_matrix(weight)
    assert matrix.shape == (shape[0], np.prod(shape[1:]))
    assert_array_equal(matrix.reshape(shape), weight)


def test_a_matrix_runs_over_in_then_kh_then_kw():
    weight = counting(*CONV)
    matrix = layout.weight_to_matrix(weight)
    o, i, y, x = 2, 3, 1, 2
    assert matrix[o, i * 8 + y * 4 + x] == weight[o, i, y, x]


@pytest.mark.parametrize("shape", [LINEAR, POINTWISE, CONV])
def test_factors_become_matrices_and_back(shape):
    down = counting(RANK, *shape[1:])
    up = counting(shape[0], RANK, *(1 for _ in shape[2:]))
    a, b = layout.down_to_matrix(down), layout.up_to_matrix(up)
    assert a.shape == (RANK, np.prod(shape[1:]))
    assert b.shape == (shape[0], RANK)
    assert_array_equal(layout.matrix_to_down(a, shape), down)
    assert_array_equal(layout.matrix_to_up(b, shape), up)


def test_the_product_of_factor_matrices_is_what_two_convolutions_do():
    rng = np.random.default_rng(0)
    down = rng.standard_normal((RANK, 5, 3, 3)).astype(np.float32)
    up = rng.standard_normal((4, RANK, 1, 1)).astype(np.float32)
    image = torch.from_numpy(rng.standard_normal((1, 5, 8, 8)).astype(np.float32))
    twice = torch.conv2d(torch.conv2d(image, torch.from_numpy(down)), torch.from_numpy(up))
    weight = (layout.up_to_matrix(up) @ layout.down_to_matrix(down)).reshape(4, 5, 3, 3)
    once = torch.conv2d(image, torch.from_numpy(weight))
    assert_allclose(once.numpy(), twice.numpy(), atol=1e-4)  # float32, sums of 90 products


def test_kernels_have_flax_axes():
    weight = counting(*CONV)
    kernel = layout.weight_to_kernel(weight)
    assert kernel.shape == (2, 4, 5, 3)
    assert kernel[1, 2, 3, 0] == weight[0, 3, 1, 2]
    assert layout.weight_to_kernel(counting(*LINEAR)).shape == (5, 3)


@pytest.mark.parametrize("shape", [LINEAR, POINTWISE, CONV])
def test_kernels_come_back(shape):
    weight = counting(*shape)
    assert_array_equal(layout.kernel_to_weight(layout.weight_to_kernel(weight)), weight)


@pytest.mark.parametrize("permute", [layout.weight_to_kernel, layout.kernel_to_weight])
def test_other_numbers_of_axes_are_refused(permute):
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\): expected 2 axes .* or 4"):
        permute(counting(2, 3, 4))
