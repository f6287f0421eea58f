"""Which of four real sentence encoders are relatives of MiniLM-L6, by this program: rule 23.

    python scripts/fetch_lm.py models
    python scripts/compare_encoders.py models

Compares MiniLM-L6 with its fine-tune, with its int8 form and with a paraphrase model of three
layers of the same shapes, and moves an adapter of random factors to each by `copy`. The last two
are ONNX files, whose linear layers are taken out as floats; that needs the package `onnx`. Models
that are not there are skipped with a reason. What came out is on docs/evidence.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.adapters.files import save_adapter
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers.tensors import write_tensors
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.base_similarity import similarity
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions

SOURCE = "minilm-l6"
TARGETS = {
    "minilm-l6-tuned": "close relatives",
    "minilm-l6-int8": "close relatives",
    "minilm-l3": "refused",
}
"""What rule 23 expects."""
LACKING = "is not there; scripts/fetch_lm.py fetches it"


def linear_layers(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Weights of an ONNX encoder by BERT's names, `(out, in)`: products that a bias is added to.

    Args:
        file: of floats, or of 8 bits that are multiplied by a scale for each column.

    Yields:
        Name and weight.
    """
    onnx = import_module("onnx")
    numpy_helper = import_module("onnx.numpy_helper")
    graph = onnx.load(str(file)).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}

    def numbers(name: str) -> Any:
        if name in held:
            return numpy_helper.to_array(held[name])
        node = made[name]
        if node.op_type == "Cast":
            return numbers(node.input[0]).astype(np.float32)
        assert node.op_type == "Mul", node.op_type
        return numbers(node.input[0]) * numbers(node.input[1])

    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name.endswith(".bias")), "")
        product = next((made[name] for name in node.input if name in made), None)
        place = bias.find("encoder.layer.")
        if place >= 0 and product is not None and product.op_type == "MatMul":
            name = bias[place:].removesuffix("bias") + "weight"
            yield name, np.ascontiguousarray(numbers(product.input[1]).T, np.float32)


def as_folder(model: Path, out: Path) -> Path:
    """The folder of a model; of an ONNX one a new one with the weights of its layers.

    Args:
        model: of scripts/fetch_lm.py.
        out: where a new folder may be.
    """
    file = model / "model.onnx"
    if not file.is_file():
        return model
    folder = out / model.name
    write_tensors(folder / "model.safetensors", dict(linear_layers(file)), {"format": "pt"})
    return folder


def random_adapter(source: Path, file: Path) -> None:
    """An adapter of rank 4 on all layers of the encoder."""
    spec, rng = load_base_model(source).spec, np.random.default_rng(0)
    modules = []
    for path, module in sorted(spec.modules.items()):
        if ".layer." in path:
            height, width = module.matrix_shape
            down, up = (rng.standard_normal(s, np.float32) for s in ((4, width), (height, 4)))
            modules.append(LoraModule(path, down, up))
    save_adapter(Adapter(tuple(modules), "peft"), file, base=spec)


def verdict(source: Path, target: Path, work: Path) -> tuple[str, str]:
    """What the program says of a pair: one word, and the numbers."""
    copy = MigrationOptions(method="copy")
    try:
        done = migrate_file(work / "a.safetensors", source, target, work / target.name, copy)
    except AdapterRefused as refusal:
        if refusal.code is not Refusal.UNRELATED:
            raise
        return "refused", str(refusal)
    store = FolderStore(work / "store")
    found = similarity(source, target, "linear", store=store).relation
    return found.word, f"{found.sentence} copied {len(done.report.modules)} modules"


def main() -> int:
    """Compare, say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path)
    models, right = parser.parse_args().models, True
    with tempfile.TemporaryDirectory() as place:
        work, source = Path(place), models / SOURCE
        if not source.is_dir():
            print(f"skipped: {source} {LACKING}")
            return 0
        random_adapter(source, work / "a.safetensors")
        for name, expected in TARGETS.items():
            if not (models / name).is_dir():
                print(f"{name} | skipped: {models / name} {LACKING}")
                continue
            try:
                target = as_folder(models / name, work / "floats")
                word, told = verdict(source, target, work)
            except ImportError:
                print(f"{name} | skipped: pip install onnx")
                continue
            right = right and word == expected
            print(f"{name} | {word} | {'as' if word == expected else 'NOT as'} expected | {told}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
