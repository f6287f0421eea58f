"""Parameter trees of the Flax classes that diffusers and transformers had, as files of names.

A line for each array, `place<TAB>[shape]`, sorted. `tests/stock/test_trees.py` holds each file
against the class itself, where it still is, and writes them; everybody else reads them here.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import builders
import unets
import vision_nets

FOLDER = Path(__file__).parents[1] / "stock" / "trees"

Shapes = dict[str, tuple[int, ...]]

_GROUPS = {"norm_num_groups": 32}  # the class has so many in every norm
# Nets of one make with those in `builders`, as wide as the class can be.
UNETS: dict[str, dict[str, Any]] = {
    "unet-xl": builders.TINY_XL | _GROUPS | {"block_out_channels": (32, 64, 64)},
    "unet-sd15": builders.TINY_SD15 | _GROUPS | {"block_out_channels": (32, 64)},
}
VAES: dict[str, dict[str, Any]] = {"vae": unets.PUBLISHED_VAE}
# With a projection of the summary, and without.
TEXTS: dict[str, dict[str, Any]] = {
    "text": {"num_hidden_layers": 2},
    "text-projected": {"num_hidden_layers": 2, "projection_dim": 24},
}
CLIP: dict[str, Any] = {
    "vision_config": vision_nets.CONFIGS["quick_gelu"],
    "text_config": {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 9,
    },
    "projection_dim": 10,
}
VISIONS: dict[str, dict[str, Any]] = {
    "clip-vision": vision_nets.CONFIGS["quick_gelu"],
    "dinov2": vision_nets.CONFIGS["dinov2"],
}

# SHA-256 of such files of whole published UNets.
DIGESTS = {
    "sd15": "b7feb9262f4f7a3bf5ad61a0b60d73609299e840853a40910b4acbd5e50c12b3",
    "sd21": "a00774ea5a803f2037c4950d93ec09cde32d18ca1547f2e159739263ccc62849",
    "sdxl": "3c297f1bc9bb189d70edb7a396d08edb12f287f00f41e22d3c39dff8fffd2e85",
    "sdxl-refiner": "d37f464aa7f7ff9f688dad988e56cafac9b420f9120b33562daa3ab115e26eb9",
    "ssd-1b": "9c79a77f784a460a4a8a6bceaaacd44ab7ac05e70c48f87572b221fc5cd7bcd0",
    "vega": "5d530929a67650dff594c92952a51b14dd9410fe31c38c18a75a6f7062b933c9",
    "koala-700m": "f215099a0cad91a5984cef98d298f087b2cd1d6dd2019b9ada1befd697c1c9ee",
    "koala-1b": "1c5cdc0c3e44ca51971284bda88d2e358f0f69ce98f29f62cf444f4f8c481418",
    "bk-sdm-base": "77473ce08a4aa729e7972ee264e5d8892c9054a94823d0b9d4cb8901c756e640",
    "bk-sdm-small": "0cdfd0202f34cafa1a58d9f987444129515814821c5a8b02333d5e8112a6479d",
    "bk-sdm-tiny": "e65c364928facb9c89afb6e7ae79996ccb2c9d958009267de6ecae20e7b2cc07",
}


def written(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The text of a file, without the end of its last line."""
    return "\n".join(sorted(f"{place}\t{list(shape)}" for place, shape in shapes.items()))


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """SHA-256 of the text."""
    return sha256(written(shapes).encode()).hexdigest()


def stock_tree(name: str) -> Shapes:
    """Shape by place of a tree that is stored."""
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    rows = (line.split("\t") for line in lines)
    return {
        place: tuple(int(n) for n in shape.strip("[]").split(",") if n) for place, shape in rows
    }
