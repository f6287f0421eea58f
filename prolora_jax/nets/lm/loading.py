"""Language models from disk, without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.architectures.flax_trees import leaves, nested
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import located
from prolora_jax.io.base_models.lm_files import lm_tensors, read_lm_config
from prolora_jax.nets.lm.causal import CausalLm
from prolora_jax.nets.lm.config import LmConfig, lm_from_transformers

Params = dict[str, Any]


def load_lm(path: str | Path, *, dtype: Any = jnp.float32) -> tuple[CausalLm, Params]:
    """A language model and its parameters: `model.apply({"params": params}, ids).logits`.

    Args:
        path: the folder of a causal model of transformers.
        dtype: what parameters are cast to, and what the net computes in.

    Returns:
        The module, and its parameters as nested dictionaries of JAX arrays.

    Raises:
        UsageError: there is nothing at `path`.
        BaseModelError: what is there is no model of a kind that is computed here, is damaged, or
            its tensors are not those of its configuration.
    """
    place = located(path)
    raw, file = read_lm_config(place)
    model = CausalLm(lm_from_transformers(raw, origin=str(file)), dtype, dtype)
    wanted = lm_table(model.config)
    found = {}
    for name, tensor in lm_tensors(place):
        key = _flax_key(name)
        if key == "lm_head/kernel" and key not in wanted:
            continue  # a copy of the embedding that it is tied to
        array = tensor.T if key.endswith("/kernel") else tensor
        _require(str(path), name, wanted.get(key), array.shape)
        found[key] = jnp.asarray(np.ascontiguousarray(array), dtype)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise BaseModelError(
            f"{path}: found no tensor for {missing[0]} ({len(missing)} such); expected one; the "
            f"weights are not those of {file}",
            code=Refusal.SHAPE_MISMATCH,
        )
    return model, nested(found)


def lm_table(config: LmConfig) -> Mapping[str, tuple[int, ...]]:
    """Shape of every parameter of a model by its key in the tree, `model/norm/weight`."""
    model = CausalLm(config)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    made: Any = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return {key: leaf.shape for key, leaf in leaves(made["params"])}


def _flax_key(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    if leaf == "weight":
        kind = layer.rpartition(".")[2]
        leaf = "embedding" if kind == "embed_tokens" else "weight" if "norm" in kind else "kernel"
    return "/".join((*layer.split("."), leaf))


def _require(
    origin: str, name: str, wanted: tuple[int, ...] | None, found: tuple[int, ...]
) -> None:
    if wanted != found:
        expected = "no such tensor" if wanted is None else f"{wanted}"
        raise BaseModelError(
            f"{origin}: found {name} of shape {found} (in, out); expected {expected}; the weights "
            f"are not those of the configuration",
            code=Refusal.SHAPE_MISMATCH,
        )
