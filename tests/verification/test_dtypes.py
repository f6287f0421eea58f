"""float32 in place of 16 bits is right only where 16 bits do not hold the update."""

import numpy as np
import pytest

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.verification.dtypes import needs_float32

RNG = np.random.default_rng(0)
UP, DOWN = RNG.normal(size=(12, 4)), RNG.normal(size=(4, 10))


@pytest.mark.parametrize(
    ("size", "asked", "needed"),
    [
        (1.0, "float16", False),
        (1e-2, "float16", False),
        (1e-7, "float16", True),  # nothing but a few bits near 0 is left
        (1e6, "float16", True),
        (1e6, "bfloat16", False),
        (1e-7, "bfloat16", False),
        (1e-7, "float32", False),
    ],
)
def test_what_sixteen_bits_hold_needs_no_more(size: float, asked: str, needed: bool):
    module = LoraModule("m", (DOWN * size).astype(np.float32), (UP * size).astype(np.float32))
    assert needs_float32(module, asked) is needed


def test_uneven_factors_are_evened_before_they_are_judged():
    module = LoraModule("m", (DOWN * 1e-6).astype(np.float32), (UP * 1e4).astype(np.float32))
    assert not needs_float32(module, "float16")


def test_columns_that_cancel_each_other_need_more():
    up = np.hstack([UP[:, :1], -UP[:, :1]]) + 1e-5 * UP[:, 2:]
    down = np.vstack([DOWN[:1], DOWN[:1]])
    module = LoraModule("m", down.astype(np.float32), up.astype(np.float32))
    assert needs_float32(module, "float16")
