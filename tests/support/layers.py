"""A net of three layers, and updates of other algorithms held against other people's numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.adapters.fitting import fit
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.layout import weight_to_matrix
from prolora_jax.verification.structured import DENSE

ROOT = "unet.down_blocks.0.attentions.0"
LINEAR, CONV, SQUARE = f"{ROOT}.to_q", f"{ROOT}.conv1", f"{ROOT}.conv2"
SHAPES = {LINEAR: (16, 24), CONV: (16, 8, 3, 3), SQUARE: (16, 16, 3, 3)}
SPEC = BaseModelSpec(name="net", modules={p: ModuleSpec(p, shape) for p, shape in SHAPES.items()})
Updates = dict[str, np.ndarray]


def build_net() -> Any:
    """The net, with random weights and under names of a UNet."""
    torch.manual_seed(0)
    net: Any = torch.nn.Module()
    inner = net
    for name in ROOT.split(".")[1:]:
        inner.add_module(name, torch.nn.Module())
        inner = getattr(inner, name)
    for path, shape in SHAPES.items():
        made: Any = torch.nn.Linear(shape[1], shape[0])
        if len(shape) == 4:
            made = torch.nn.Conv2d(shape[1], shape[0], shape[2], padding=1)
        inner.add_module(path.rpartition(".")[2], made)
    return net


def layer_of(net: Any, path: str) -> Any:
    """The layer at one of our paths."""
    return net.get_submodule(path.removeprefix("unet."))


def weights_of(net: Any) -> Updates:
    """The weights of the net as matrices, by path."""
    return {p: weight_to_matrix(layer_of(net, p).weight.detach().numpy()) for p in SHAPES}


def randomised(state: dict[str, Any], *, size: float = 0.3, seed: int = 1) -> dict[str, Any]:
    """The same tensors with random numbers, but for alphas and what is no float."""
    rng = np.random.default_rng(seed)
    return {
        key: array
        if key.endswith(("alpha", "on_input"))
        else (size * rng.standard_normal(array.shape)).astype(np.float32)
        for key, array in state.items()
    }


def answer(layer: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What a layer makes of each unit input, as a matrix."""
    units = torch.eye(int(np.prod(shape[1:]))).reshape(-1, *shape[1:])
    with torch.no_grad():
        found = layer(units)
    if found.ndim == 4:  # padded: the middle pixel sees the whole window
        found = found[:, :, shape[2] // 2, shape[3] // 2]
    return found.numpy().astype(np.float64).T


def assert_read(source: Path, weights: Updates, want: Updates) -> None:
    """Ours reads a file and makes the updates that `want` says; verify computes them, too.

    Args:
        source: a file or a folder.
        weights: of the base model.
        want: the update of each module as a matrix.
    """
    adapter = load_adapter(source, SPEC, structured=True)
    assert {module.path for module in adapter.structured} == set(want)
    made = fit(adapter, SPEC, matrix=weights.__getitem__, factor_rank=FactorRank(1.0, None)).adapter
    for module in adapter.structured:
        path = module.path
        own = made.module(path)
        product = own.up.reshape(-1, own.rank).astype(np.float64) @ own.down.reshape(own.rank, -1)
        checked = DENSE[module.algorithm](module, SHAPES[path], weights[path].astype(np.float64))
        size = np.linalg.norm(want[path])
        assert size > 0.0
        assert np.linalg.norm(product - want[path]) <= 1e-6 * size, path
        assert np.linalg.norm(checked - want[path]) <= 1e-6 * size, path


def save(state: dict[str, Any], file: Path) -> Path:
    """Write a file of tensors."""
    save_file({key: np.array(array, order="C") for key, array in state.items()}, file)
    return file
