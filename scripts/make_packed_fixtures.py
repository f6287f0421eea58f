"""Make the small packed models that tests read, and the floats that their libraries make of them.

Each `NAME.safetensors` in tests/io/packed holds a layer or two as a library has packed them, each
`NAME.floats.safetensors` what the same library unpacks them to; `sums.json` has the hash of every
file, and the libraries' versions. The libraries are not among those that the tests need:

    pip install torch==2.13.0 bitsandbytes torchao optimum-quanto transformers
    pip install --no-deps auto-gptq==0.7.1
    pip download --no-deps autoawq==0.2.9 && tar xzf autoawq-0.2.9.tar.gz
    PYTHONPATH=autoawq-0.2.9 python scripts/make_packed_fixtures.py

auto-gptq and autoawq no longer run with the others as wholes: only the files that pack and unpack
are loaded, which need none of the rest.
"""

import argparse
import hashlib
import json
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "io" / "packed"
Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.0.mlp.up_proj"
LIBRARIES = ("torch", "bitsandbytes", "torchao", "optimum-quanto", "auto-gptq")

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


def bare(package: str) -> None:
    """Have a package's files found without running what it begins with."""
    outer, _, name = package.rpartition(".")
    if outer:
        folders = [f"{folder}/{name}" for folder in sys.modules[outer].__path__]
    else:
        spec = find_spec(package)
        assert spec is not None
        folders = [*(spec.submodule_search_locations or ())]
    module = types.ModuleType(package)
    module.__path__ = folders
    module.__spec__ = ModuleSpec(package, None, is_package=True)
    sys.modules[package] = module


def grid(numbers: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros `(out, groups)` of a weight: zeros from 1 on, as AutoGPTQ can store them."""
    parts = numbers.reshape(numbers.shape[0], -1, group)
    low, high = parts.amin(2).clamp(max=-1e-3), parts.amax(2).clamp(min=1e-3)
    scales = ((high - low) / (2**bits - 1)).half().float()
    return scales, torch.round(-low / scales).clamp(1, 2**bits - 2)


def gptq(bits: int) -> Made:
    """A layer as AutoGPTQ packs it, with groups of columns here and there."""
    for package in ("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear"):
        bare(package)
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    inputs, outputs, group = 64, 32, 16
    linear = torch.nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = weight(outputs, inputs).half()
    scales, zeros = grid(linear.weight.data.float(), bits, group)
    layer = QuantLinear(bits, group, inputs, outputs, bias=False, weight_dtype=torch.float16)
    scattered = torch.arange(inputs, dtype=torch.int32)[torch.randperm(inputs)] // group
    layer.pack(linear, scales.half(), zeros, scattered)
    floats = layer(torch.eye(inputs).half()).T.contiguous()
    return {f"{Q}.{end}": tensor for end, tensor in layer.state_dict().items()}, {Q: floats}, {}


def awq() -> Made:
    """A layer as AutoAWQ packs it."""
    for package in ("awq", "awq.modules", "awq.modules.linear", "awq.utils"):
        bare(package)
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    inputs, outputs, group = 64, 32, 32
    linear = torch.nn.Linear(inputs, outputs, bias=False)
    linear.weight.data = weight(outputs, inputs).half()
    scales, zeros = grid(linear.weight.data.float(), 4, group)
    layer = WQLinear_GEMM.from_linear(
        linear, 4, group, scales=scales.T.contiguous(), zeros=zeros.T.contiguous()
    )
    floats = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, group)
    stored = {f"{Q}.{end}": tensor for end, tensor in layer.state_dict().items()}
    return stored, {Q: floats.T.contiguous()}, {}


def torchao(config: object) -> Made:
    """A layer as torchao's functions for safetensors save it."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import quantize_

    layer = torch.nn.Sequential(torch.nn.Linear(48, 24, bias=False)).to(torch.bfloat16)
    layer[0].weight.data = weight(24, 48).to(torch.bfloat16)
    quantize_(layer, config)
    packed = layer[0].weight
    stored, strings = flatten_tensor_state_dict({f"{Q}.weight": packed.data})
    return stored, {Q: packed.dequantize().detach()}, strings


def torchao_int8() -> Made:
    """int8 in groups of 16 columns."""
    from torchao.quantization import Int8WeightOnlyConfig, PerGroup

    return torchao(Int8WeightOnlyConfig(granularity=PerGroup(16)))


def torchao_float8() -> Made:
    """float8 by rows."""
    from torchao.quantization import Float8WeightOnlyConfig

    return torchao(Float8WeightOnlyConfig())


def quanto(kind: str) -> Made:
    """A layer as optimum-quanto saves it."""
    from optimum import quanto

    model = torch.nn.Sequential(torch.nn.Linear(48, 24, bias=False)).half()
    model[0].weight.data = weight(24, 48).half()
    quanto.quantize(model, weights=getattr(quanto, kind))
    quanto.freeze(model)
    stored = {key.replace("0.", f"{Q}.", 1): t for key, t in model.state_dict().items()}
    return stored, {Q: model[0].weight.dequantize().detach()}, {}


MAKERS = {
    "nf4": lambda: four_bits("nf4", torch.float16, False, 24, 70),
    "nf4_twice": lambda: four_bits("nf4", torch.bfloat16, True, 130, 128),
    "fp4_stored_as_bf16": lambda: four_bits(
        "fp4", torch.float32, True, 16, 64, quant_storage=torch.bfloat16
    ),
    "int8": int8,
    "gptq4": lambda: gptq(4),
    "gptq8": lambda: gptq(8),
    "awq": awq,
    "torchao_int8": torchao_int8,
    "torchao_float8": torchao_float8,
    "qint8": lambda: quanto("qint8"),
    "qfloat8": lambda: quanto("qfloat8_e4m3fn"),
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
