"""Files of other algorithms than plain LoRA, written by LyCORIS, and what its layers compute.

Its `forward` is asked, not its merging functions, which count a scale twice (formats.md 7).
"""

import copy
import logging
from typing import Any, NamedTuple

import builders
import numpy as np
import torch
from builders import TINY_XL
from lycoris.wrapper import LycorisNetwork, create_lycoris

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.adapters.fitting import fit
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.layout import weight_to_matrix

logging.getLogger("LyCORIS").setLevel(logging.ERROR)

XL: BaseModelSpec = spec_from_config(builders.TINY_XL_TABLE, name="xl")
EXACT = FactorRank(1.0, None)
LAYERS = (
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "unet.down_blocks.1.resnets.0.conv_shortcut",
    "unet.down_blocks.1.resnets.0.conv1",
    "unet.down_blocks.1.resnets.0.conv2",
    "unet.mid_block.attentions.0.transformer_blocks.2.attn2.to_k",
)
"""Linear layers and 3x3 convolutions, square and not, and a pointwise one."""


class Made(NamedTuple):
    """A file's tensors, and by layer what they add to the weight, as its own library says."""

    tensors: dict[str, np.ndarray]
    updates: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


def by_lycoris(algo: str, *, seed: int = 0, size: float = 0.3, **options: Any) -> Made:
    """A network of LyCORIS on some layers of a tiny SDXL, with random numbers in all its tensors.

    Args:
        algo: as LyCORIS calls it.
        seed: of the numbers.
        size: of the numbers.
        **options: of `create_lycoris`.
    """
    LycorisNetwork.apply_preset(
        {"target_name": [path.removeprefix("unet.") for path in LAYERS], "target_module": []}
    )
    plain = builders.build_unet(TINY_XL)
    unet = copy.deepcopy(plain)
    how: dict[str, Any] = {
        "linear_dim": 3,
        "linear_alpha": 2,
        "conv_dim": 3,
        "conv_alpha": 2,
    } | options
    made: Any = create_lycoris(unet, 1.0, algo=algo, **how)
    made.apply_to()  # before it, the network has no parameters
    made.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            random = size * torch.randn(parameter.shape, generator=generator)
            is_ratio = name.endswith(("dora_scale", "rescale"))
            parameter.copy_(parameter * (1.0 + random) if is_ratio else random)
    tensors = {
        key.replace("lycoris_", "lora_unet_", 1): tensor.detach().numpy()
        for key, tensor in made.state_dict().items()
    }
    updates = {path: by_forward(unet, plain, path) for path in LAYERS}
    return Made(tensors, updates, weights_of(plain))


def by_forward(unet: Any, plain: Any, path: str) -> np.ndarray:
    """What a patched layer adds to what the plain one makes of each unit input."""
    patched, layer = (net.get_submodule(path.removeprefix("unet.")) for net in (unet, plain))
    shape = XL.modules[path].shape
    units = torch.eye(int(np.prod(shape[1:])), dtype=torch.float32).reshape(-1, *shape[1:])
    with torch.no_grad():
        none = torch.zeros_like(units)  # biases, which may be trained, too
        found = patched(units) - patched(none) - (layer(units) - layer(none))
    if found.ndim == 4:  # padded: the middle pixel sees the whole window
        found = found[:, :, shape[2] // 2, shape[3] // 2]
    return found.numpy().T.astype(np.float64)


def weights_of(unet: Any) -> dict[str, np.ndarray]:
    """The weights of the layers as matrices."""
    return {
        path: weight_to_matrix(
            unet.get_submodule(path.removeprefix("unet.")).weight.detach().numpy()
        )
        for path in LAYERS
    }


def read(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Adapter:
    """The adapter as the file has it."""
    return parse(tensors, metadata or {}, "file", structured=True)


def with_factors(
    adapter: Adapter, made: Made, rank: FactorRank = EXACT, base: BaseModelSpec = XL
) -> Adapter:
    """The adapter with LoRA factors alone."""
    weights = made.weights
    return fit(adapter, base, matrix=weights.__getitem__, factor_rank=rank).adapter
