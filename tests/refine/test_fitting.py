"""The student on linear nets, where the right update is known in closed form."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from eight_devices import found_by
from jax.tree_util import Partial

from prolora_jax.errors import UsageError
from prolora_jax.refine.fitting import (
    FitState,
    RefineOptions,
    balanced,
    factors_from_zero,
    fit,
    loss_and_gradient,
    new_state,
)
from prolora_jax.refine.rows import Rows
from prolora_jax.refine.teacher import effect

WIDTH, RANK = 6, 2
SHORT = RefineOptions(steps=10, batch=8, rate=1e-2)


def net(params: Any, factors: Any, noisy: Any, times: Any, conditioning: Any) -> Any:
    """Two linear layers, `out @ (hidden + update)`; the time and the words go unheard."""
    down, up = factors["hidden"]
    hidden, out = params
    return noisy @ (hidden + up @ down).T @ out.T


def given(params: tuple[np.ndarray, np.ndarray]) -> Any:
    return Partial(net, tuple(jnp.asarray(p, jnp.float32) for p in params))


def made_up(seed: int = 0) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, tuple]]:
    """A source, whose hidden units all matter as much, and an adapter of it."""
    rng = np.random.default_rng(seed)
    out = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    down, up = rng.standard_normal((RANK, WIDTH)) / 2, rng.standard_normal((WIDTH, RANK)) / 2
    return (rng.standard_normal((WIDTH, WIDTH)), out), {"hidden": (down, up)}


def delta(factors: Any) -> np.ndarray:
    down, up = (np.asarray(a, np.float64) for a in factors["hidden"])
    return up @ down


def said(params: tuple[np.ndarray, np.ndarray], update: Any, x: np.ndarray) -> np.ndarray:
    """The net in plain NumPy."""
    return x @ (params[0] + update).T @ params[1].T


def rows(source: Any, target: Any, update: np.ndarray, count: int = 256) -> Rows:
    """Rows with the effect teacher's answers, all of them NumPy's."""
    x = np.random.default_rng(9).standard_normal((count, WIDTH))
    answers = effect(said(target, 0, x), said(source, update, x), said(source, 0, x))
    times, words = np.zeros(count, np.float32), np.zeros(count, np.int32)
    return Rows(x.astype(np.float32), times, words, answers.astype(np.float32))


def test_on_the_source_itself_the_copy_is_right_and_stays():
    source, adapter = made_up()
    learned = rows(source, source, delta(adapter))
    state = fit(given(source), learned, new_state(adapter, SHORT), SHORT)
    assert float(state.losses[0]) < 1e-10
    # Nothing was to be gained: rounding alone must not carry Adam far away.
    assert np.abs(delta(state.factors) - delta(adapter)).max() < 0.1
    wrong = {"hidden": (adapter["hidden"][0], -adapter["hidden"][1])}
    assert float(fit(given(source), learned, new_state(wrong, SHORT), SHORT).losses[0]) > 0.1


def test_a_stranger_with_turned_units_gets_the_turned_update():
    """The same function with its hidden units permuted and negated: a copy is wrong there."""
    source, adapter = made_up()
    rng = np.random.default_rng(5)
    turn = np.eye(WIDTH)[rng.permutation(WIDTH)] * rng.choice([-1, 1], WIDTH)[:, None]
    stranger = turn @ source[0], source[1] @ turn.T
    learned = rows(source, stranger, delta(adapter))
    right = turn @ delta(adapter)
    options = RefineOptions(steps=300, rate=3e-2)
    start = factors_from_zero({"hidden": (WIDTH, WIDTH)}, RANK)
    state = fit(given(stranger), learned, new_state(start, options), options)

    def missed(update: np.ndarray) -> float:
        return float(np.linalg.norm(update - right) / np.linalg.norm(right))

    assert missed(delta(adapter)) > 0.5
    assert missed(delta(state.factors)) < 0.02
    assert state.losses[-1] < 0.01 * state.losses[0]


def test_a_target_that_knows_half_already_keeps_it():
    """The effect is added to what the target says: its own drift is not undone."""
    source, adapter = made_up()
    target = source[0] + np.random.default_rng(3).standard_normal((WIDTH, WIDTH)), source[1]
    learned = rows(source, target, delta(adapter))
    state = fit(given(target), learned, new_state(adapter, SHORT), SHORT)
    assert float(state.losses[0]) < 1e-8


def test_stopped_and_resumed_is_the_same_to_the_bit():
    source, adapter = made_up()
    learned = rows(source, source, -delta(adapter))
    predict = given(source)
    whole = fit(predict, learned, new_state(adapter, SHORT), SHORT)
    first = fit(predict, learned, new_state(adapter, SHORT), SHORT, until=4)
    assert int(first.step) == 4
    assert not np.any(first.losses[4:])
    # As a file would keep it: arrays alone, put back into the tree of a new state.
    kept = [np.asarray(leaf).copy() for leaf in jax.tree.leaves(first)]
    tree = jax.tree.structure(new_state(adapter, SHORT))
    again = fit(predict, learned, jax.tree.unflatten(tree, kept), SHORT)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert int(again.step) == 10
    other = RefineOptions(steps=10, batch=8, rate=1e-2, seed=1)
    different = fit(predict, learned, new_state(adapter, other), other)
    assert not np.array_equal(different.losses, whole.losses)


def test_the_state_that_is_given_stays():
    source, adapter = made_up()
    state = new_state(adapter, SHORT)
    fit(given(source), rows(source, source, delta(adapter)), state, SHORT, until=1)
    assert int(state.step) == 0
    np.testing.assert_array_equal(state.losses, np.zeros(10))


def test_progress_sees_every_step():
    source, adapter = made_up()
    seen: list[int] = []

    def note(state: FitState) -> None:
        seen.append(int(state.step))

    learned = rows(source, source, delta(adapter))
    fit(given(source), learned, new_state(adapter, SHORT), SHORT, until=3, progress=note)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_change_no_gradient(parts: int):
    source, adapter = made_up()
    learned = rows(source, source, -delta(adapter), 16)
    factors = new_state(adapter, SHORT).factors
    loss, gradient = loss_and_gradient(given(source), factors, learned)
    split, other = loss_and_gradient(given(source), factors, learned, parts=parts)
    np.testing.assert_allclose(split, loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), other, gradient
    )


def test_the_gradient_is_the_calculus_one():
    source, adapter = made_up()
    learned = rows(source, source, -delta(adapter), 16)
    factors = new_state(adapter, SHORT).factors
    _, gradient = loss_and_gradient(given(source), factors, learned)
    down, up = (np.asarray(a, np.float64) for a in factors["hidden"])
    error = said(source, up @ down, learned.noisy) - learned.target
    of_hidden = 2 / error.size * (error @ source[1]).T @ learned.noisy
    np.testing.assert_allclose(gradient["hidden"][0], up.T @ of_hidden, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient["hidden"][1], of_hidden @ down.T, rtol=1e-4, atol=1e-6)


def test_steps_are_those_of_optax():
    """Clipped Adam along optax's own warm-up and cosine, on rows that are all the same."""
    source, adapter = made_up()
    one = jax.tree.map(lambda a: np.repeat(a[:1], 8, axis=0), rows(source, source, -delta(adapter)))
    options = RefineOptions(steps=12, batch=8, rate=3e-2)
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-2, 6, 12)
    oracle = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    factors = new_state(adapter, options).factors
    found = fit(given(source), one, new_state(adapter, options), options).factors
    gradient_of = jax.jit(lambda factors: loss_and_gradient(given(source), factors, one)[1])
    with jax.numpy_dtype_promotion("standard"):
        moments = oracle.init(factors)
        for _ in range(12):
            change, moments = oracle.update(gradient_of(factors), moments)
            factors = optax.apply_updates(factors, change)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, factors
    )


def test_balanced_factors_have_one_norm_and_the_same_product():
    rng = np.random.default_rng(0)
    start = {"a": (100 * rng.standard_normal((2, 5)), 1e-3 * rng.standard_normal((4, 2)))}
    ((down, up),) = balanced(start).values()
    assert np.linalg.norm(down) == pytest.approx(np.linalg.norm(up), rel=1e-5)
    np.testing.assert_allclose(up @ down, start["a"][1] @ start["a"][0], rtol=1e-4, atol=1e-6)
    assert down.dtype == up.dtype == np.float32


def test_factors_from_zero_change_nothing_and_keep_their_size():
    start = factors_from_zero({"a": (4, 5)}, 2)
    ((down, up),) = balanced(start).values()
    assert not up.any()
    np.testing.assert_array_equal(down, start["a"][0])


def test_a_plain_function_is_a_net_too():
    source, adapter = made_up()
    weights = tuple(jnp.asarray(p, jnp.float32) for p in source)
    learned = rows(source, source, -delta(adapter))
    plain = fit(lambda *a: net(weights, *a), learned, new_state(adapter, SHORT), SHORT, until=3)
    by_tree = fit(given(source), learned, new_state(adapter, SHORT), SHORT, until=3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain.factors, by_tree.factors
    )


@pytest.mark.parametrize(("steps", "batch"), [(0, 32), (100, 0)])
def test_nothing_to_fit_is_refused(steps: int, batch: int):
    with pytest.raises(UsageError, match=r"nothing would be fitted. Got \d+ steps of \d+ rows"):
        RefineOptions(steps=steps, batch=batch)


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(UsageError, match="cannot be cut into micro-batches. Got 32 rows and 5"):
        RefineOptions(micro_batch=5)


def test_eight_devices_take_the_steps_of_one():
    script = Path(__file__).parents[1] / "support" / "sharded_refinement.py"
    found = found_by(script)
    assert found["devices"] == 8
    assert found["difference"] < 1e-5
    assert found["difference in parts"] < 1e-5
    assert found["rows on a device"] == [2]
    expected = (
        "rows cannot be spread over devices. Got 12 rows at once and 8 devices; expected a mu"
    )
    assert expected in found["refused"]
