"""A source and a target made of each other: the target's blocks are noisy copies of known ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from builders import TINY_SSD, TINY_XL, add_lora, build_unet, save_by_diffusers, save_folder
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from prolora_jax.architectures.unet.stacks import BLOCK, split_block

LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "ff.net.2"]


@dataclass(frozen=True)
class TorchPair:
    """Folders of both bases, the adapter file, both nets, and the planted source blocks."""

    source: Path
    target: Path
    adapter: Path
    source_net: UNet2DConditionModel
    target_net: UNet2DConditionModel
    planted: tuple[int, ...]

    def source_path(self, path: str) -> str:
        """Where the target's module at `path` was copied from."""
        split = split_block(path)
        if split is None:
            return path
        slot, index, role = split
        if _depth(self.source_net, slot) <= _depth(self.target_net, slot):
            return path
        return f"{slot}{BLOCK}{self.planted[index]}.{role}"

    def weight(self, net: UNet2DConditionModel, path: str) -> np.ndarray:
        """Weight of a module in float64, as a matrix."""
        module = net.get_submodule(path.removeprefix("unet."))
        weight = module.get_parameter("weight").detach().double().numpy()
        return weight.reshape(weight.shape[0], -1)


def _depth(net: UNet2DConditionModel, slot: str) -> int:
    blocks = f"{slot}{BLOCK}".removeprefix("unet.")
    inside = [name.removeprefix(blocks) for name, _ in net.named_modules() if blocks in name]
    return len({name.split(".")[0] for name in inside})


def make_pair(folder: Path, planted: tuple[int, ...] = (0, 2), noise: float = 0.1) -> TorchPair:
    """Build both nets with diffusers, the adapter with peft, and save all three."""
    source, target = build_unet(TINY_XL, seed=0), build_unet(TINY_SSD, seed=1)
    pair = TorchPair(
        folder / "source", folder / "target", folder / "lora.safetensors", source, target, planted
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, module in target.named_modules():
            origin = pair.source_path(f"unet.{name}")
            if not hasattr(module, "weight"):
                continue
            try:
                given = source.get_submodule(origin.removeprefix("unet.")).get_parameter("weight")
            except AttributeError:
                continue
            drawn = torch.randn(given.shape, generator=generator) * given.std()
            # Noise grows along the net, so that some modules fall below the gate.
            growth = 8.0 if name.startswith("up_blocks.1") else 1.0
            module.weight.copy_(given + noise * growth * drawn)
    save_folder(source, pair.source)
    save_folder(target, pair.target)
    add_lora(source, targets=LINEAR, alpha=6)  # not the rank: a forgotten scale must show
    save_by_diffusers(source, folder).rename(pair.adapter)
    source.delete_adapters("default")
    return pair
