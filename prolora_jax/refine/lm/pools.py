"""Texts that models write, and how likely a model finds them.

A text starts with the model's own first token, where there is one, and one token drawn from all: no
prompt has to be known, and texts differ from their first word on (LLM-QAT, arXiv 2305.17888).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from prolora_jax.engines.progress import Progress
from prolora_jax.nets.adapters.adapted import adapted
from prolora_jax.nets.lm.adapting import beside
from prolora_jax.nets.lm.causal import CausalLm
from prolora_jax.nets.lm.writing import written
from prolora_jax.nets.pipelines.devices import each_a_share, on_all
from prolora_jax.refine.lm.recipe import LmRecipe

NAME = "given"


class Texts(NamedTuple):
    """Texts as tokens.

    Attributes:
        ids: `(n, length)`.
        real: which of them are part of the text: up to its end, `(n, length)`.
    """

    ids: Int[np.ndarray, "n length"]
    real: Bool[np.ndarray, "n length"]

    def joined(self, other: "Texts") -> "Texts":
        """These texts, then others of the same length."""
        return Texts(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class WritingModel(NamedTuple):
    """A model with its parameters, and an adapter beside them or none.

    Attributes:
        model: the net.
        params: its parameters.
        adapted: whether they hold an adapter named `NAME`.
        mesh: devices that texts are spread over; all have the parameters.
    """

    model: CausalLm
    params: Any
    adapted: bool = False
    mesh: Mesh | None = None

    @classmethod
    def placed(cls, model: CausalLm, params: Any, mesh: Mesh | None) -> "WritingModel":
        """A model on every device of a mesh.

        Args:
            model: the net.
            params: its parameters.
            mesh: that texts are spread over; None for one device.
        """
        return cls(model, on_all(params, mesh), mesh=mesh)

    def beside(self, factors: Any) -> "WritingModel":
        """The same model with an adapter.

        Args:
            factors: `(down, up)` by module path.
        """
        params = on_all(beside(self.params, NAME, factors), self.mesh)
        return self._replace(params=params, adapted=True)


@partial(jax.jit, static_argnames=("model", "with_adapter"))
def said(model: CausalLm, params: Any, ids: Any, real: Any, *, with_adapter: bool = False) -> Any:
    """Logits of the token after each, `(n, length, vocabulary)` in float32."""
    with adapted({NAME: 1.0} if with_adapter else {}):
        found: Any = model.apply({"params": params}, ids, real)
    return found.logits


def pool(
    speaker: WritingModel, recipe: LmRecipe, vocabulary: int, name: str, progress: Progress
) -> Texts:
    """Texts that a model writes.

    Args:
        speaker: who writes.
        recipe: how many, how long.
        vocabulary: tokens to begin with: those that both models of a pair know.
        name: of the pool; pools of other names begin otherwise.
        progress: called with (what, done, total).
    """
    config = speaker.model.config
    rng = np.random.default_rng([recipe.seed, *name.encode()])
    first = rng.integers(0, vocabulary, (recipe.texts, 1))
    if config.bos_token_id is not None:
        first = np.concatenate([np.full_like(first, config.bos_token_id), first], axis=1)
    first = first.astype(np.int32)
    key = jax.random.key(int(rng.integers(2**31)))
    found = []
    for begin in range(0, recipe.texts, recipe.at_once):
        progress(f"{name} writes", begin, recipe.texts)
        some = _filled(first[begin : begin + recipe.at_once], recipe.at_once)
        ids = written(
            speaker.model,
            speaker.params,
            *each_a_share((some, np.ones(some.shape, bool)), speaker.mesh),
            jax.random.fold_in(key, begin),
            length=recipe.tokens - first.shape[1],
            temperature=recipe.temperature,
            vocabulary=vocabulary,
            adapter=NAME if speaker.adapted else None,
        )
        found.append(np.asarray(ids)[: recipe.texts - begin])
    progress(f"{name} writes", recipe.texts, recipe.texts)
    ids = np.concatenate(found)
    return Texts(ids, _up_to_the_end(ids, config.eos_token_ids, first.shape[1]))


def surprise(speaker: WritingModel, texts: Texts, at_once: int) -> float:
    """Mean negative log-likelihood of texts' tokens, in nats."""
    total, count = 0.0, 0
    for begin in range(0, len(texts.ids), at_once):
        part = Texts(*(_filled(a[begin : begin + at_once], at_once) for a in texts))
        shares = each_a_share(tuple(part), speaker.mesh)
        nll, real = _nll(speaker.model, speaker.params, *shares, with_adapter=speaker.adapted)
        kept = len(texts.ids) - begin
        total += float(np.asarray(nll)[:kept].sum())
        count += int(np.asarray(real)[:kept].sum())
    return total / max(count, 1)


@partial(jax.jit, static_argnames=("model", "with_adapter"))
def _nll(model: CausalLm, params: Any, ids: Any, real: Any, *, with_adapter: bool) -> Any:
    logits = said(model, params, ids, real, with_adapter=with_adapter)[:, :-1]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.where(real[:, 1:], -chosen, 0.0).sum(axis=1), real[:, 1:].sum(axis=1)


def _up_to_the_end(ids: np.ndarray, ends: tuple[int, ...], given: int) -> np.ndarray:
    """A text ends with its first token of an end behind what was given."""
    ended = np.isin(ids, list(ends))
    ended[:, :given] = False
    before = np.cumsum(ended, axis=1) - ended
    return before == 0


def _filled(array: np.ndarray, count: int) -> np.ndarray:
    """With its last row again and again up to `count`: one program serves all batches."""
    lacking = count - len(array)
    return np.concatenate([array, np.repeat(array[-1:], lacking, axis=0)]) if lacking else array
