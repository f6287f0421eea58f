"""Text that a model writes, token by token, with keys and values kept."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from prolora_jax.nets.adapters.adapted import adapted
from prolora_jax.nets.lm.causal import CausalLm, empty_caches


@partial(jax.jit, static_argnames=("model", "length", "vocabulary", "adapter"))
def written(
    model: CausalLm,
    params: Any,
    prompts: Int[Array, "batch given"],
    real: Bool[Array, "batch given"],
    key: Any,
    *,
    length: int,
    temperature: Any = 1.0,
    vocabulary: int | None = None,
    adapter: str | None = None,
) -> Int[Array, "batch whole"]:
    """Continue prompts.

    Args:
        model: what writes.
        params: its parameters.
        prompts: tokens, with padding on the left where prompts have unlike lengths.
        real: which of them are no padding.
        key: of the draws.
        length: tokens to write.
        temperature: that logits are divided by; 0 takes the likeliest token.
        vocabulary: tokens from this one on are not written; all may be where None.
        adapter: one beside the kernels that writes with them.

    Returns:
        Prompts and what was written, `(batch, given + length)`. Ends of texts are no ends here:
        who reads them cuts.
    """
    batch, given = prompts.shape
    room = given + length
    caches = empty_caches(model.config, batch, room, model.dtype)
    whole_real = jnp.concatenate([real, jnp.ones((batch, length), bool)], axis=1)

    def told(ids: Any, caches: Any, start: Any) -> Any:
        with adapted({} if adapter is None else {adapter: 1.0}):
            return model.apply({"params": params}, ids, whole_real, caches, start)

    first = told(prompts, caches, 0)

    def drawn(logits: Any, step: Any) -> Any:
        logits = logits[:, :vocabulary]
        hot = logits / jnp.maximum(temperature, 1e-6)
        chosen = jax.random.categorical(jax.random.fold_in(key, step), hot)
        return jnp.where(temperature > 0, chosen, jnp.argmax(logits, axis=-1))

    def step(carry: Any, number: Any) -> Any:
        token, caches = carry
        said = told(token[:, None], caches, given + number)
        return (drawn(said.logits[:, -1], number + 1), said.caches), token

    start = (drawn(first.logits[:, -1], 0), first.caches)
    _, tokens = jax.lax.scan(step, start, jnp.arange(length))
    return jnp.concatenate([prompts, tokens.T], axis=1)
