"""Make a pair of diffusion transformers of real size, and an adapter of the first.

    python scripts/make_dit_pair.py OUT

Writes a model with the modules of FLUX.1 dev as its authors name them, cast to 8 bits as people
keep it (OUT/source.safetensors, 12 GB), one with those of Flex.1 in bfloat16 as diffusers keeps it
(OUT/target/transformer, 16 GB), and an adapter of rank 16 on all linear layers of the first's
blocks (OUT/style.safetensors). The target's blocks are those of the source that were kept, by the
published map, with noise; the one that stands for all that were dropped is none of them. Nothing is
trained: numbers come from one buffer, read from another place for each weight. There are no norms
and no biases.
"""

import argparse
import json
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from make_lm_pair import BF16, NOISE, Numbers

from prolora_jax.architectures.dit.originals import OriginalPart, originals
from prolora_jax.architectures.dit.published import dit_modules
from prolora_jax.io.atomic import write_text
from prolora_jax.io.containers.streamed import write_each
from prolora_jax.io.containers.tensors import write_tensors

SOURCE, TARGET = "flux1-dev", "flex1-alpha"
KEPT = {**{block: block for block in range(4)}, 5: 16, 6: 17, 7: 18}
"""Block of the source by block of the target; block 4 of the target is none of the source's."""

NEW = 1000
"""Numbers of weights that are in the target alone start here."""

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
DOUBLE = "transformer_blocks."


class SourceWeights:
    """The source's weights by the names of diffusers."""

    def __init__(self) -> None:
        self.shapes = dit_modules(SOURCE)
        self._places, self._new = (
            {name: place for place, name in enumerate(sorted(dit_modules(model)))}
            for model in (SOURCE, TARGET)
        )
        self._given, self._noise = Numbers(0), Numbers(2)

    def weight(self, name: str) -> np.ndarray:
        """A weight of the source, in bfloat16."""
        return self._given.weight(self._places[name], self.shapes[name])

    def kept(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A weight of the target, in bfloat16: one of the source's with noise, or a new one."""
        own = self._source_of(name)
        if own is None or self.shapes.get(own) != shape:
            return self._given.weight(NEW + self._new[name], shape)
        drawn = self._noise.weight(self._places[own], shape).astype(np.float32)
        return (self.weight(own).astype(np.float32) + NOISE * drawn).astype(BF16)

    def fused(self, parts: list[tuple[str, OriginalPart]], shape: tuple[int, ...]) -> np.ndarray:
        """A weight as the authors have it, in 8 bits, from the modules that it holds."""
        whole = np.empty(shape, FP8)
        for name, part in parts:
            weight, row = self.weight(name).astype(FP8), 0
            for first, end in part.segments or ((0, shape[0]),):
                whole[first:end] = weight[row : row + end - first]
                row += end - first
        return whole

    def _source_of(self, name: str) -> str | None:
        if not name.startswith(DOUBLE):
            return name
        number, _, role = name.removeprefix(DOUBLE).partition(".")
        return f"{DOUBLE}{KEPT[int(number)]}.{role}" if int(number) in KEPT else None


def write_source(path: Path, weights: SourceWeights) -> None:
    """One file in 8 bits with the names of the model's authors."""
    held: dict[str, list[tuple[str, OriginalPart]]] = {}
    places = originals({f"transformer.{name}": shape for name, shape in weights.shapes.items()})
    for place, part in places.items():
        held.setdefault(part.name, []).append((place.removeprefix("transformer."), part))
    shapes = {
        name: (sum(weights.shapes[own][0] for own, _ in parts), weights.shapes[parts[0][0]][1])
        for name, parts in held.items()
    }
    tables = {f"{name}.weight": (shape, FP8) for name, shape in sorted(shapes.items())}

    def made(key: str) -> np.ndarray:
        name = key.removesuffix(".weight")
        return weights.fused(held[name], shapes[name])

    write_each(path, tables, made)


def write_target(folder: Path, weights: SourceWeights) -> None:
    """A folder of diffusers with the target in bfloat16."""
    modules = {f"{name}.weight": shape for name, shape in sorted(dit_modules(TARGET).items())}
    tables = {key: (shape, BF16) for key, shape in modules.items()}
    path = folder / "diffusion_pytorch_model.safetensors"
    write_each(path, tables, lambda key: weights.kept(key.removesuffix(".weight"), modules[key]))
    config = {"_class_name": "FluxTransformer2DModel", "num_layers": 8, "num_single_layers": 38}
    write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def write_adapter(path: Path, rank: int = 16) -> None:
    """Random factors on all linear layers of the source's blocks."""
    rng, tensors = np.random.default_rng(1), {}
    for name, (out, width) in dit_modules(SOURCE).items():
        if "transformer_blocks." in name:
            down = rng.standard_normal((rank, width), np.float32) / width**0.5
            up = 0.01 * rng.standard_normal((out, rank), np.float32)
            tensors[f"transformer.{name}.lora_A.weight"] = down.astype(BF16)
            tensors[f"transformer.{name}.lora_B.weight"] = up.astype(BF16)
    write_tensors(path, tensors, {"format": "pt"})


def main(arguments: list[str] | None = None) -> None:
    """Make what the command line asks for.

    Args:
        arguments: of the command line; those of this process if None.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args(arguments).out
    started, weights = time.monotonic(), SourceWeights()
    (out / "target" / "transformer").mkdir(parents=True, exist_ok=True)
    write_source(out / "source.safetensors", weights)
    write_target(out / "target" / "transformer", weights)
    write_adapter(out / "style.safetensors")
    print(f"made in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
