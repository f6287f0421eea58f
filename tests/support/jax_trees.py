"""Small models whose adapters JAX trainers wrote, and what they answer to a few tokens."""

import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import torch
import transformers

DATA = Path(__file__).parents[1] / "data"
TOKENS = np.arange(12)[None] * 3 % 40
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
WIDE = {"hidden_size": 32, "head_dim": 12, "rope_theta": 1e6}


def base_model(name: str, **sizes: Any) -> Any:
    """A model of transformers' with drawn weights, always the same, as the trainers had them."""
    config = getattr(transformers, f"{name}Config")(**SIZES | sizes)
    net = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    drawn, state = np.random.default_rng(0), net.state_dict()
    with torch.no_grad():
        for key in sorted(state):
            array = drawn.normal(0, 0.1, tuple(state[key].shape)) + ("norm" in key)
            state[key].copy_(torch.from_numpy(array.astype(np.float32)))
    return net


def logits(net: Any) -> np.ndarray:
    with torch.no_grad():
        return net(torch.from_numpy(TOKENS)).logits.numpy()


def unpacked(name: str, folder: Path) -> Path:
    with zipfile.ZipFile(DATA / name) as archive:
        archive.extractall(folder)
    return folder


def arrays(step: Path) -> dict[str, np.ndarray]:
    """A tree by orbax's own reader."""
    found: dict[str, np.ndarray] = {}

    def put(place: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, inner in node.items():
                put(f"{place}/{key}" if place else key, inner)
        else:
            found[place] = np.asarray(node)

    reader, place = ocp.PyTreeCheckpointer(), (step / "model_params").absolute()
    plain = ocp.RestoreArgs(restore_type=np.ndarray)
    item: Any = reader.metadata(place).item_metadata
    kinds = jax.tree.map(lambda _: plain, item.tree)
    put("", reader.restore(place, restore_args=kinds))
    return found
