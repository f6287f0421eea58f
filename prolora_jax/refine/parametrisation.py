"""Noise, velocity and flow brought to one, so that predictions can be subtracted.

(docs/refine.md 2.) A net is shown `x = a x_0 + s e` and predicts one of

    epsilon        e              (Ho et al., arXiv 2006.11239)
    v_prediction   a e - s x_0    (Salimans and Ho, arXiv 2202.00512, appendix D)
    flow           e - x_0        (Liu et al., arXiv 2209.03003; Esser et al., arXiv 2403.03206)

Each is a linear function of `(x_0, e)` which, together with `x`, gives both back. So one becomes
another exactly, at any `a` and `s` that are not both zero; but for `epsilon`, which says nothing of
`x_0` where `a` is zero.
"""

from typing import Literal

import jax
import numpy as np

Array = jax.Array | np.ndarray
Parametrisation = Literal["epsilon", "v_prediction", "flow"]
"""diffusers' names for what a net predicts; `flow` is what its flow-matching schedulers take."""


def clean_and_noise(
    of: Parametrisation, prediction: Array, noisy: Array, signal: Array, noise: Array
) -> tuple[Array, Array]:
    """What a prediction says the picture and the noise are.

    Args:
        of: what was predicted.
        prediction: of the net.
        noisy: what the net was shown.
        signal: `a`, shaped to be multiplied with `noisy`.
        noise: `s`, likewise.

    Returns:
        `x_0` and `e`, with `a x_0 + s e = x`.
    """
    if of == "epsilon":
        return (noisy - noise * prediction) / signal, prediction
    if of == "v_prediction":
        power = signal**2 + noise**2
        clean = (signal * noisy - noise * prediction) / power
        return clean, (noise * noisy + signal * prediction) / power
    total = signal + noise
    return (noisy - noise * prediction) / total, (noisy + signal * prediction) / total


def predicted(
    to: Parametrisation, clean: Array, added: Array, signal: Array, noise: Array
) -> Array:
    """What a net of a parametrisation has to say of a picture with noise.

    Args:
        to: what is predicted.
        clean: `x_0`.
        added: `e`.
        signal: `a`.
        noise: `s`.

    Returns:
        The prediction.
    """
    if to == "epsilon":
        return added
    if to == "v_prediction":
        return signal * added - noise * clean
    return added - clean


def converted(
    prediction: Array,
    noisy: Array,
    signal: Array,
    noise: Array,
    *,
    of: Parametrisation,
    to: Parametrisation,
) -> Array:
    """A prediction as a net of another parametrisation would have said it.

    Args:
        prediction: of the net.
        noisy: what the net was shown.
        signal: `a`, shaped to be multiplied with `noisy`.
        noise: `s`, likewise.
        of: what was predicted.
        to: what is wanted.

    Returns:
        The prediction; the very same where nothing has to change.
    """
    if of == to:
        return prediction
    return predicted(to, *clean_and_noise(of, prediction, noisy, signal, noise), signal, noise)


def shown_to_a_flow(noisy: Array, signal: Array, noise: Array) -> tuple[Array, Array]:
    """The same picture with noise as a flow's net is shown it: `(1 - t) x_0 + t e`.

    Both have one ratio of signal to noise, and differ by a factor.

    Args:
        noisy: `a x_0 + s e`.
        signal: `a`.
        noise: `s`.

    Returns:
        `x / (a + s)` and `t = s / (a + s)`.
    """
    total = signal + noise
    return noisy / total, noise / total
