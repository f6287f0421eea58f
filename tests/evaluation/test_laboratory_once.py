"""What the laboratory computes once: nets that count how often they are asked."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from prolora_jax.evaluation.laboratory.adapters import TrainedFactors
from prolora_jax.evaluation.laboratory.once import Answers, name_of


class Asked:
    """A net that says what it is shown, twice over, and counts."""

    def __init__(self):
        self.times = 0

    def __call__(self, noisy, times, words):
        self.times += 1
        return 2 * noisy


def rows(seed: int, count: int = 3):
    noisy = np.random.default_rng(seed).standard_normal((count, 4, 4, 4)).astype(np.float32)
    return noisy, np.full(count, 0.5, np.float32), np.arange(count, dtype=np.int32)


def updates(value: float = 1.0) -> dict[str, TrainedFactors]:
    return {
        name: TrainedFactors(np.full((2, 3), value, np.float32), np.ones((4, 2), np.float32))
        for name in ("b", "a")
    }


def test_a_net_is_asked_once_for_equal_rows_and_again_for_others():
    answers, net = Answers(), Asked()
    first = answers.remembered(b"net", lambda: net)
    np.testing.assert_array_equal(first(*rows(0)), 2 * rows(0)[0])
    again = answers.remembered(b"net", lambda: net)
    np.testing.assert_array_equal(again(*rows(0)), 2 * rows(0)[0])
    assert net.times == 1

    noisy, times, words = rows(0)
    for changed in (
        (noisy + 1, times, words),
        (noisy, times / 2, words),
        (noisy, times, words + 1),
    ):
        np.testing.assert_array_equal(again(*changed), 2 * changed[0])
    assert net.times == 4
    answers.remembered(b"other", lambda: net)(*rows(0))
    assert net.times == 5


def test_names_are_of_what_arrays_hold_whatever_holds_them():
    """Of every two bytes NumPy says the same of bfloat16 as of float16's bits, or of nothing."""
    bits = np.arange(6, dtype=np.uint16)
    arrays = [
        *(bits.view(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.int16, np.uint16)),
        *(a.reshape(2, 3) for a in (bits, bits.view(ml_dtypes.bfloat16))),
        *(bits.view(ml_dtypes.bfloat16)[::-1], bits.astype(">u2"), bits[0], bits[:1], bits[:0]),
    ]
    names = [name_of("x", {"a": TrainedFactors(a, bits)}) for a in arrays]
    assert len({*names}) == len(arrays)
    answers, net = Answers(), Asked()
    predict = answers.remembered(b"net", lambda: net)
    given: list[Any] = [jnp.asarray(part) for part in rows(0)]
    noisy = given[0].astype(jnp.bfloat16)
    for _ in range(2):
        predict(*rows(0))
        predict(*given)  # the same numbers
        predict(np.asarray(noisy), *given[1:])
    assert net.times == 2


def test_a_net_that_is_not_asked_anew_is_not_made():
    answers, made = Answers(), []

    def net():
        made.append(Asked())
        return made[-1]

    for _ in range(2):
        answers.remembered(b"net", net)(*rows(0))
    assert len(made) == 1


def test_what_was_not_asked_for_longest_is_forgotten():
    net, size = Asked(), rows(0)[0].nbytes
    answers = Answers(room=2 * size)
    predict = answers.remembered(b"net", lambda: net)
    for seed in (0, 1, 0, 2):  # 2 takes the place of 1
        predict(*rows(seed))
    assert (net.times, answers.held) == (3, 2 * size)
    predict(*rows(0))
    assert net.times == 3
    predict(*rows(1))
    assert net.times == 4


def test_adapters_with_equal_updates_have_one_name():
    given = updates()
    turned = dict(reversed(given.items()))
    assert name_of("x", given) == name_of("x", turned)
    others = [
        name_of("y", given),
        name_of("x", given, 0.5),
        name_of("x", updates(2.0)),
        name_of("x", {"a": given["a"]}),
        name_of("x", {"a": given["a"], "c": given["b"]}),
        name_of("x", {}),
    ]
    assert len({name_of("x", given), *others}) == 7
    assert name_of("x", {}, 0.5) == name_of("x", {})  # nothing to be scaled
