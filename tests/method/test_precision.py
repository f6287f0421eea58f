"""What products are computed in: stated for every platform, and used where a method multiplies."""

from inspect import unwrap

import jax
import numpy as np
import pytest
from jax.lax import Precision

from prolora_jax.method import linalg
from prolora_jax.method.operators import Span, prepare_side
from prolora_jax.method.projection import apply_side


@pytest.mark.parametrize(
    ("platform", "precision"),
    [("tpu", Precision.HIGH), ("cpu", Precision.HIGHEST), ("gpu", Precision.HIGHEST)],
)
def test_a_tpu_leaves_out_what_a_projection_may_lose(platform: str, precision: Precision):
    assert linalg.product_precision(platform) == precision


@pytest.mark.parametrize("precision", [Precision.HIGH, Precision.HIGHEST])
def test_both_products_of_a_side_have_it_and_gram_matrices_have_all(
    monkeypatch: pytest.MonkeyPatch, precision: Precision
):
    monkeypatch.setattr(linalg, "product_precision", lambda _: precision)
    base, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))
    spans = Span(base[:, :5]), Span(base[:, 3:8])
    side = prepare_side("prolora-full", *spans, kind="thin")
    # A function of this test alone: what was traced of another one knows another precision.
    program = jax.make_jaxpr(lambda r: unwrap(apply_side)(side.form, side.operator, r))(
        np.ones((3, 8, 24), np.float32)
    )
    products = [e for e in program.eqns if e.primitive.name == "dot_general"]
    found = [e.params["precision"] for e in products]
    assert len(found) == 5  # there, back; Gram matrices of the result, the input, what is inside
    both, all_of_it = (precision,) * 2, (Precision.HIGHEST,) * 2
    expected = [both] * 2 + [all_of_it] * 3
    assert sorted(map(str, found)) == sorted(map(str, expected))
