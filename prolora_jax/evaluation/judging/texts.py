"""Prompts as an encoder of pictures was taught them: its own text tower, CLIP's tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from prolora_jax.architectures.flax_parts import text_encoder_to_flax
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.encoders import load_text_tensors
from prolora_jax.io.base_models.tokenizer_files import is_whole, read_tokenizer
from prolora_jax.nets.text.clip import ClipTextEncoder
from prolora_jax.nets.text.config import Activation, ClipConfig
from prolora_jax.nets.text.tokens import ClipTokenizer

_HEAD = 64
"""Width of a head in every published CLIP."""

_AT_ONCE = 32


def embed_prompts(
    name: str, prompts: Sequence[str], weights_dir: Path | None, tokenizer: Path | None
) -> Float[np.ndarray, "prompts width"]:
    """Projected embeddings of prompts by the text tower that belongs to an encoder.

    Args:
        name: of `encoders.ENCODERS`, of one with a text tower.
        prompts: what was drawn.
        weights_dir: folder of encoders; None for the hub.
        tokenizer: folder of CLIP's tokenizer where none stands beside the weights; any pipeline of
            the Stable Diffusion family has the same.

    Raises:
        UsageError: a file, or a tokenizer, is not there.
        BaseModelError: a file is another net's, or damaged.
    """
    tensors = load_text_tensors(name, weights_dir)
    encoder = ClipTextEncoder(_config(name, tensors), projected=True)
    own = None if weights_dir is None else weights_dir / name
    folder = own if own is not None and is_whole(own) else tokenizer
    if folder is None:
        raise UsageError(
            f"{name}: found no tokenizer to read prompts with; expected CLIP's beside the weights "
            f"(vocab.json and merges.txt, or tokenizer.json), or give --tokenizer DIR",
            code=Refusal.MISSING_FILE,
        )
    ids = ClipTokenizer(read_tokenizer(folder), encoder.config.max_position_embeddings)(prompts)
    params = {"params": text_encoder_to_flax(tensors)}
    said = []
    for begin in range(0, len(ids), _AT_ONCE):
        # As pictures are embedded: accelerators multiply in fewer bits unless they are told.
        with jax.default_matmul_precision("highest"):
            text: Any = encoder.apply(params, jnp.asarray(ids[begin : begin + _AT_ONCE]))
        said.append(np.asarray(text.pooled, np.float32))
    return np.concatenate(said)


def _config(name: str, tensors: Mapping[str, np.ndarray]) -> ClipConfig:
    """The sizes of a text tower, read off its tensors; OpenAI's alone has the quick GELU."""
    embedding = tensors["text_model.embeddings.token_embedding.weight"]
    inner = tensors["text_model.encoder.layers.0.mlp.fc1.weight"]
    layers = {key.split(".")[3] for key in tensors if key.startswith("text_model.encoder.layers.")}
    activation: Activation = "quick_gelu" if name == "clip" else "gelu"
    width = embedding.shape[1]
    return ClipConfig(
        vocab_size=embedding.shape[0],
        hidden_size=width,
        intermediate_size=inner.shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // _HEAD),
        max_position_embeddings=len(tensors["text_model.embeddings.position_embedding.weight"]),
        hidden_act=activation,
        projection_dim=tensors["text_projection.weight"].shape[0],
        eos_token_id=2,  # the highest number ends a prompt, as in every CLIP
    )
