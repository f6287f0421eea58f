"""Base models of the laboratory: made of nothing, of a folder, or of one another."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.evaluation.laboratory.lm.recipe import LmBase, LmLaboratory
from prolora_jax.evaluation.laboratory.lm.texts import Encode, training_rows
from prolora_jax.evaluation.laboratory.lm.training import train_lm
from prolora_jax.io.base_models.lm_files import read_lm_config
from prolora_jax.nets.lm.causal import CausalLm
from prolora_jax.nets.lm.config import lm_from_transformers
from prolora_jax.nets.lm.loading import load_lm
from prolora_jax.refine.fitting import RefineOptions

_ORIGIN = "the laboratory's recipe"


class MadeLm(NamedTuple):
    """A language model: its `config.json`, net and parameters."""

    raw: Mapping[str, Any]
    model: CausalLm
    params: Any


def read_lm(folder: Path) -> MadeLm:
    """A language model from disk, in float32."""
    return MadeLm(read_lm_config(folder)[0], *load_lm(folder))


def new_lm(raw: Mapping[str, Any], seed: int) -> MadeLm:
    """A language model that knows nothing.

    Args:
        raw: what its `config.json` says.
        seed: of its parameters.
    """
    model = CausalLm(lm_from_transformers(raw, origin=_ORIGIN))
    made: Any = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))
    return MadeLm(raw, model, made["params"])


def derived(base: LmBase, parent: MadeLm) -> MadeLm:
    """What a base is before it is trained.

    Args:
        base: `drop` and `narrow` change the parent, others are as it is.
        parent: the model that it is made of.
    """
    if base.kind == "drop":
        return _without_layers(parent, base.layers)
    return _narrowed(parent, base.width) if base.kind == "narrow" else parent


def trained(
    made: MadeLm,
    base: LmBase,
    lab: LmLaboratory,
    encode: Encode,
    say: Callable[[str], None],
) -> MadeLm:
    """A base after its training; as it is where it has no steps.

    Args:
        made: of `new_lm` or `derived`.
        base: text, steps, rate and seed.
        lab: rows and batch.
        encode: of the models.
        say: called with a line now and then.
    """
    if not base.steps:
        return made
    rows = training_rows(base.text, encode, lab.rows, lab.length, base.seed)
    options = RefineOptions(steps=base.steps, rate=base.rate, batch=lab.batch, seed=base.seed)
    return made._replace(params=train_lm(made.model, made.params, rows, options, say))


def _without_layers(parent: MadeLm, dropped: tuple[int, ...]) -> MadeLm:
    depth = parent.model.config.num_hidden_layers
    kept = [layer for layer in range(depth) if layer not in dropped]
    inner = parent.params["model"]
    layers = {str(n): inner["layers"][str(layer)] for n, layer in enumerate(kept)}
    raw = {**parent.raw, "num_hidden_layers": len(kept)}
    params = {**parent.params, "model": {**inner, "layers": layers}}
    return _resized(parent, raw, params)


def _narrowed(parent: MadeLm, width: int) -> MadeLm:
    """With the channels of the residual stream that embeddings use most."""
    table = np.asarray(parent.params["model"]["embed_tokens"]["embedding"])
    full = table.shape[1]
    kept = np.sort(np.argsort(-np.square(table).sum(axis=0), kind="stable")[:width])

    def cut(path: Any, leaf: Any) -> Any:
        names = [key.key for key in path]
        if names[-2] in ("o_proj", "down_proj", "embed_tokens"):
            return leaf[:, kept]  # what writes to the stream
        return leaf[kept] if leaf.shape[0] == full else leaf  # what reads it, and its norms

    raw = {**parent.raw, "hidden_size": width, "head_dim": parent.model.config.head_dim}
    return _resized(parent, raw, jax.tree_util.tree_map_with_path(cut, parent.params))


def _resized(parent: MadeLm, raw: Mapping[str, Any], params: Any) -> MadeLm:
    model = parent.model.clone(config=lm_from_transformers(raw, origin=_ORIGIN))
    return MadeLm(raw, model, params)
