"""A small classifier whose features generated pictures are compared in."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.evaluation.laboratory.data import NULL, SIDE, Pictures

WIDTH = 64
STEPS, RATE, SMOOTHING = 400, 3e-3, 0.05


class Classifier(NamedTuple):
    """A net with one hidden layer, `8 * 8 -> WIDTH -> NULL` classes.

    Attributes:
        hidden: weight `(64, WIDTH)` and bias.
        out: weight `(WIDTH, NULL)` and bias.
    """

    hidden: tuple[Any, Any]
    out: tuple[Any, Any]

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Pictures `(n, 8, 8)` -> `(n, WIDTH)`."""
        return np.asarray(_features(self, pixels))

    def words(self, pixels: np.ndarray) -> np.ndarray:
        """The most likely word of each picture `(n, 8, 8)`."""
        return np.asarray(_scores(self, pixels)).argmax(axis=1)


def _features(net: Classifier, pixels: Any) -> jax.Array:
    weight, bias = net.hidden
    return jnp.tanh(jnp.asarray(pixels).reshape(-1, SIDE * SIDE) @ weight + bias[None])


def _scores(net: Classifier, pixels: Any) -> jax.Array:
    weight, bias = net.out
    return _features(net, pixels) @ weight + bias[None]


@cache
def _trainer() -> Any:
    import optax  # of the extra `lab`: most measures do without

    optimizer = optax.adam(RATE)

    def loss(net: Classifier, pixels: jax.Array, wanted: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy(_scores(net, pixels), wanted).mean()

    def step(net: Any, state: Any, pixels: jax.Array, wanted: jax.Array) -> Any:
        gradient = jax.grad(loss)(net, pixels, wanted)
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(gradient, state, net)
        return optax.apply_updates(net, change), state

    return optimizer, jax.jit(step)


def train_classifier(pictures: Pictures, seed: int = 0) -> Classifier:
    """A classifier of pictures by word.

    Args:
        pictures: all go into every step.
        seed: of initial weights, and of the noise that the pictures are shown with.

    Returns:
        The trained net.
    """
    rng = np.random.default_rng(seed)
    sizes = ((SIDE * SIDE, WIDTH), (WIDTH, NULL))
    layers = [
        (
            jnp.asarray(rng.standard_normal(size) / size[0] ** 0.5, jnp.float32),
            jnp.zeros(size[1], jnp.float32),
        )
        for size in sizes
    ]
    net: Any = Classifier(*layers)
    optimizer, step = _trainer()
    state = optimizer.init(net)
    wanted = np.eye(NULL, dtype=np.float32)[pictures.words] * (1 - SMOOTHING) + np.float32(
        SMOOTHING / NULL
    )
    for _ in range(STEPS):
        noise = rng.standard_normal(pictures.pixels.shape, np.float32)
        net, state = step(net, state, pictures.pixels + np.float32(0.2) * noise, wanted)
    return net
