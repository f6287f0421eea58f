"""Two small random nets and one adapter, as files.

The source is shaped like SDXL, the target like SSD-1B: shallower, no attention in the middle,
its transformer blocks noisy copies of chosen source blocks (not the first ones), with noise that
grows from block to block so that the gate has something to decide.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.unet.stacks import BLOCK, split_block
from prolora_jax.architectures.unet.table import UNetTensors, unet_table
from prolora_jax.io.adapters.files import save_adapter
from prolora_jax.io.containers.tensors import write_tensors

SOURCE = UNetTensors(
    block_out_channels=(16, 32, 64),
    down_depths=(0, 2, 5),
    up_depths=(5, 2, 0),
    mid_depth=5,
    cross_attention_dim=96,
    add_embedding_dim=112,
    linear_projection=True,
)
TARGET = UNetTensors(
    block_out_channels=(16, 32, 64),
    down_depths=(0, (2, 2), (2, 2)),
    up_depths=((2, 2, 5), (2, 1, 1), 0),
    mid="resnet",
    cross_attention_dim=96,
    add_embedding_dim=112,
    linear_projection=True,
)
PLANTED = {5: (1, 3), 2: (1,)}
"""Source blocks that survive in the target, by the depth of the source's slot."""

RANK = 4
QUIET, LOUD = 0.02, 1.2
"""Relative noise of the target's first and last weight."""


@dataclass(frozen=True)
class ToyFiles:
    """What was made."""

    source: Path
    target: Path
    adapter: Path


def make_files(folder: Path, seed: int = 0) -> ToyFiles:
    """Write a source net, a target net and a kohya adapter for the source.

    Args:
        folder: where to; made when it is not there.
        seed: of all random numbers.

    Returns:
        Paths of the two base models (diffusers folders) and of the adapter.
    """
    rng = np.random.default_rng(seed)
    source = {key: _weight(rng, shape) for key, shape in unet_table(SOURCE).items()}
    table = unet_table(TARGET)
    noise = np.geomspace(QUIET, LOUD, len(table))
    target = {
        key: _noisy(rng, source[_origin(key)], level)
        for (key, shape), level in zip(table.items(), noise, strict=True)
    }
    paths = []
    for name, tensors in (("sdxl-like", source), ("ssd-1b-like", target)):
        path = folder / name / "unet" / "diffusion_pytorch_model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {key: array.astype(np.float16) for key, array in tensors.items()})
        paths.append(folder / name)
    adapter = folder / "style.safetensors"
    _write_adapter(rng, adapter)
    return ToyFiles(paths[0], paths[1], adapter)


def planted_block(slot: str, index: int) -> int:
    """Source block that the target's block `index` of a slot is a noisy copy of."""
    depth = _depths(SOURCE)[slot]
    return index if _depths(TARGET)[slot] == depth else PLANTED[depth][index]


@cache
def _depths(config: UNetTensors) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in spec_from_config(config, name="toy").modules:
        split = split_block(path)
        if split is not None:
            found[split[0]] = max(found.get(split[0], 0), split[1] + 1)
    return found


def _origin(key: str) -> str:
    """Source tensor that a target tensor is a copy of."""
    split = split_block(f"unet.{key}")
    if split is None:
        return key
    slot, index, role = split
    return f"{slot}{BLOCK}{planted_block(slot, index)}.{role}".removeprefix("unet.")


def _weight(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A random weight; a matrix has singular values that decay about like i^-0.5."""
    if len(shape) != 2:
        return rng.normal(size=shape) / max(1, np.prod(shape[1:])) ** 0.5
    out, width = shape
    inner = min(shape)
    decay = np.arange(1, inner + 1) ** -0.5
    return (rng.normal(size=(out, inner)) * decay) @ rng.normal(size=(inner, width)) / inner


def _noisy(rng: np.random.Generator, weight: np.ndarray, level: float) -> np.ndarray:
    noise = rng.normal(size=weight.shape)
    scale = np.linalg.norm(weight) / max(np.linalg.norm(noise), 1e-30)
    return weight + level * scale * noise


def _write_adapter(rng: np.random.Generator, path: Path) -> None:
    spec = spec_from_config(SOURCE, name="sdxl-like")
    modules = []
    for module in spec.modules.values():
        if module.kind_is("attn"):
            out, width = module.matrix_shape
            down = rng.normal(size=(RANK, width)) / width**0.5
            up = rng.normal(size=(out, RANK)) / out**0.5
            modules.append(
                LoraModule(
                    module.path, down.astype(np.float16), up.astype(np.float16), alpha=RANK / 2
                )
            )
    adapter = Adapter(tuple(modules), "kohya-ldm", metadata={"ss_network_dim": str(RANK)})
    save_adapter(adapter, path, base=spec, overwrite=True)
