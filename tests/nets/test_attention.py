"""Attention of many tokens, some at a time: torch's numbers, and memory that grows with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from prolora_jax.nets.unet import attention
from prolora_jax.nets.unet.attention import attend


@pytest.mark.parametrize("tokens", [30, 32, 41])
def test_some_at_a_time_is_what_torch_does_at_once(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "AT_ONCE", 16)
    rng = np.random.default_rng(0)
    given = [rng.standard_normal((2, n, 3, 4)).astype(np.float32) for n in (tokens, 25, 25)]
    found = attend(*map(jnp.asarray, given), whole=20)
    q, k, v = (torch.from_numpy(array).transpose(1, 2) for array in given)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    assert_allclose(found, want.numpy(), atol=1e-6)


def test_memory_grows_with_the_tokens_and_no_faster() -> None:
    def temporaries(tokens: int) -> int:
        shape = jax.ShapeDtypeStruct((1, tokens, 8, 40), jnp.float32)
        run: Any = jax.jit(lambda q, k, v: attend(q, k, v, whole=attention.WHOLE))
        return run.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    # Stable Diffusion 1.5 at 1024 x 1024 pixels has 16,384: scores of all have 8 GiB, of 1,024 rows
    # half of one; they are there twice, before and behind the softmax.
    half, all_ = temporaries(8_192), temporaries(16_384)
    assert all_ < 2.2 * half
    assert all_ < 1.1 * 2**30
