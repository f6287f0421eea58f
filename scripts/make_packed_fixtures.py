"""Make the small packed models that tests read, and the floats that their libraries make of them.

Each `NAME.safetensors` in tests/io/packed holds a layer or two as a library has packed them, each
`NAME.floats.safetensors` what the same library unpacks them to; `sums.json` has the hash of every
file, and the libraries' versions. The libraries are not among those that the tests need:

    pip install torch==2.13.0 bitsandbytes torchao optimum-quanto
    python scripts/make_packed_fixtures.py
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "io" / "packed"
Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.0.mlp.up_proj"
LIBRARIES = ("torch", "bitsandbytes", "torchao", "optimum-quanto")

Tensors = dict[str, torch.Tensor]
Made = tuple[Tensors, Tensors, dict[str, str]]
"""Tensors as they are stored, floats by module, and header strings."""


def weight(*shape: int) -> torch.Tensor:
    """Small numbers, as in trained layers, a few of them large."""
    numbers = 0.05 * torch.randn(*shape)
    numbers[0, :2] *= 8
    return numbers


def four_bits(kind: str, dtype: torch.dtype, nested: bool, *shape: int, **choices) -> Made:
    """A layer as bitsandbytes saves it."""
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        weight(*shape).to(dtype),
        blocksize=64,
        quant_type=kind,
        compress_statistics=nested,
        **choices,
    )
    stored = {f"{Q}.weight": packed}
    stored |= {f"{Q}.weight.{end}": t for end, t in state.as_dict(packed=True).items()}
    return stored, {Q: functional.dequantize_4bit(packed, state)}, {}


def int8() -> Made:
    """Two layers as bitsandbytes saves them."""
    from bitsandbytes import functional

    stored: Tensors = {}
    floats: Tensors = {}
    for name, shape in ((Q, (24, 32)), (UP, (40, 24))):
        packed, scales, _ = functional.int8_vectorwise_quant(weight(*shape).half())
        stored |= {f"{name}.weight": packed, f"{name}.SCB": scales}
        stored[f"{name}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
        floats[name] = functional.int8_vectorwise_dequant(packed, scales)
    return stored, floats, {}


MAKERS = {
    "nf4": lambda: four_bits("nf4", torch.float16, False, 24, 70),
    "nf4_twice": lambda: four_bits("nf4", torch.bfloat16, True, 130, 128),
    "fp4_stored_as_bf16": lambda: four_bits(
        "fp4", torch.float32, True, 16, 64, quant_storage=torch.bfloat16
    ),
    "int8": int8,
}


def main() -> None:
    """Write the files, and their hashes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, make) in enumerate(MAKERS.items()):
        torch.manual_seed(number)
        stored, floats, metadata = make()
        stored = {key: tensor.contiguous() for key, tensor in stored.items()}
        save_file(stored, folder / f"{name}.safetensors", metadata or None)
        save_file(floats, folder / f"{name}.floats.safetensors")
    files = sorted(folder.glob("*.safetensors"))
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    made = {"versions": {name: version(name) for name in LIBRARIES}, "sums": sums}
    (folder / "sums.json").write_text(json.dumps(made, indent=2) + "\n")
    print(sum(file.stat().st_size for file in files), "bytes")


if __name__ == "__main__":
    main()
