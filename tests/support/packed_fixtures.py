"""Layers that other libraries have packed, and what they unpack them to.

`scripts/make_packed_fixtures.py` has made them; their hashes say that nobody else has.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parents[1] / "io" / "packed"


class Fixture(NamedTuple):
    """A small packed model.

    Attributes:
        file: of the model.
        tensors: in that file.
        metadata: its header strings.
        floats: that its library unpacks it to, by module.
    """

    file: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    floats: dict[str, torch.Tensor]


def fixture(name: str) -> Fixture:
    """A packed model by its name, after a look at its hash."""
    sums = json.loads((FOLDER / "sums.json").read_text())["sums"]
    file, floats = FOLDER / f"{name}.safetensors", FOLDER / f"{name}.floats.safetensors"
    for each in (file, floats):
        assert hashlib.sha256(each.read_bytes()).hexdigest() == sums[each.name]
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata() or {})
    return Fixture(file, load_file(file), metadata, load_file(floats))
