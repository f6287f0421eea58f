"""A made catalog as people have them: every format that is read, broken files, copies, odd names.

Of every ten files one is broken, in turn in every way below, and one has the content of an earlier
file. Folders are nested; one link leads back to the top. What each file is, is told, so that a run
over it can be judged.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.benchmarks.made_catalog import POOL, make_adapter, planned
from prolora_jax.benchmarks.made_models import generator
from prolora_jax.io.adapters.files import save_adapter
from prolora_jax.io.atomic import write_bytes
from prolora_jax.io.containers.tensors import write_tensors

Tensors = dict[str, np.ndarray]

WRITERS = (
    ("kohya-ldm", ".safetensors"),
    ("kohya-diffusers", ".safetensors"),
    ("diffusers", ".safetensors"),
    ("peft", ""),
    ("peft", ".safetensors"),
    ("flax", ".msgpack"),
    ("maxdiffusion", ".safetensors"),
    ("diffusers-bare", ".safetensors"),
    ("diffusers-mid", ".safetensors"),
    ("diffusers-old", ".safetensors"),
)
"""Formats and suffixes in turn; the last three are older spellings of diffusers' keys."""

FOLDERS = ("", "styles", "styles/old ones", "人物/é", "a 'quoted' \"name\"", "-dash", "x/y/z/w/v")
NAMES = (
    "{}",
    "style {}",
    "é{}",
    "-{}",
    "名前 {}",
    "a'b\"c {}",
    "line\nbreak {}",
    "{} " + "long" * 40,
)


@dataclass(frozen=True)
class MixedFile:
    """One file of the catalog.

    Attributes:
        name: its path below the catalog, POSIX separators.
        kind: its format; how it is broken; or `copy`.
        reason: stable code of the refusal that is expected; None for a usable file.
        copy_of: name of the earlier file that has the same content.
    """

    name: str
    kind: str
    reason: str | None = None
    copy_of: str | None = None


def write_mixed_catalog(
    base: BaseModelSpec, folder: Path, count: int, seed: int = 0
) -> Iterator[MixedFile]:
    """Write a catalog, one file at a time.

    Args:
        base: what the adapters are for.
        folder: where to.
        count: how many files.
        seed: of all random numbers.

    Yields:
        What was written, after each file.
    """
    pool = generator(f"{seed} pool").standard_normal(POOL, np.float32)
    good: list[MixedFile] = []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    for index in range(count):
        place = f"{FOLDERS[index % len(FOLDERS)]}/{NAMES[index % len(NAMES)]}".lstrip("/")
        stem = place.format(f"{index:05d}")
        made = replace(planned(index, seed), format="kohya-ldm")
        if index % 10 == 9:
            kind = list(BROKEN)[index // 10 % len(BROKEN)]
            suffix, reason, write = BROKEN[kind]
            tensors, metadata = dump(make_adapter(made, base, pool), "kohya-ldm", base)
            (folder / stem).parent.mkdir(parents=True, exist_ok=True)
            write(folder / f"{stem}{suffix}", tensors)
            yield MixedFile(f"{stem}{suffix}", kind, reason)
        elif index % 10 == 8:
            first = good[int(generator(f"{seed} copy {index}").integers(len(good)))]
            name = f"{stem}{Path(first.name).suffix}"
            _copy(folder / first.name, folder / name)
            yield MixedFile(name, "copy", copy_of=first.name)
        else:
            format, suffix = WRITERS[len(good) % len(WRITERS)]
            _write(make_adapter(made, base, pool), format, folder / f"{stem}{suffix}", base)
            good.append(MixedFile(f"{stem}{suffix}", format))
            yield good[-1]


def _write(adapter: Adapter, format: str, path: Path, base: BaseModelSpec) -> None:
    if format in OLD_KEYS:
        tensors, _ = dump(adapter, "diffusers", base)
        write_tensors(path, {OLD_KEYS[format](key): array for key, array in tensors.items()})
    else:
        save_adapter(adapter, path, format=format, base=base)


def _bare(key: str) -> str:
    return key.removeprefix("unet.")


def _mid(key: str) -> str:
    return key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def _old(key: str) -> str:
    """`...attn1.processor.to_q_lora.down.weight`; other layers have no spelling that old."""
    key = _mid(key).removeprefix("unet.")
    head, dot, tail = key.partition(".attn1.") if ".attn1." in key else key.partition(".attn2.")
    if not dot:
        return f"unet.{key}"
    return f"{head}{dot}processor.{tail.replace('to_out.0', 'to_out').replace('.lora.', '_lora.')}"


OLD_KEYS = {"diffusers-bare": _bare, "diffusers-mid": _mid, "diffusers-old": _old}


def _copy(first: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if first.is_dir():
        shutil.copytree(first, path)
    else:
        shutil.copyfile(first, path)


def _cut(path: Path, tensors: Tensors) -> None:
    write_tensors(path, tensors)
    os.truncate(path, path.stat().st_size * 2 // 3)


def _with_first(change: Callable[[str, np.ndarray], Tensors]) -> Callable[[Path, Tensors], None]:
    """A writer that exchanges the first `up` factor for something else."""

    def write(path: Path, tensors: Tensors) -> None:
        key = next(key for key in tensors if key.endswith("lora_up.weight"))
        rest = {k: array for k, array in tensors.items() if k != key}
        write_tensors(path, rest | change(key, tensors[key]))

    return write


def _with_keys(old: str, new: str) -> Callable[[Path, Tensors], None]:
    def write(path: Path, tensors: Tensors) -> None:
        write_tensors(path, {key.replace(old, new): array for key, array in tensors.items()})

    return write


def _with_bytes(content: bytes) -> Callable[[Path, Tensors], None]:
    return lambda path, _: write_bytes(path, content)


def _no_alpha(path: Path, tensors: Tensors) -> None:
    zero = {key: np.zeros_like(a) if key.endswith("alpha") else a for key, a in tensors.items()}
    write_tensors(path, zero)


BROKEN: dict[str, tuple[str, str, Callable[[Path, Tensors], None]]] = {
    "cut off": (".safetensors", "truncated", _cut),
    "no safetensors": (".safetensors", "not-safetensors", _with_bytes(b"<html>not found</html>")),
    "empty": (".safetensors", "truncated", _with_bytes(b"")),
    "not a number": (
        ".safetensors",
        "non-finite",
        _with_first(lambda key, array: {key: np.full_like(array, np.nan)}),
    ),
    "half a pair": (".safetensors", "incomplete-pair", _with_first(lambda key, array: {})),
    "another shape": (
        ".safetensors",
        "shape-mismatch",
        _with_first(lambda key, array: {key: np.concatenate([array, array])}),
    ),
    "LoHa": (".safetensors", "unsupported-algorithm", _with_keys("lora_up.weight", "hada_w1_a")),
    "another net": (".safetensors", "no-matching-module", _with_keys("blocks_", "layers_")),
    "alpha of 0": (".safetensors", "alpha-zero", _no_alpha),
    "a pickle": (".pt", "pickle-refused", _with_bytes(b"\x80\x04}q\x00.")),
    "an archive": (".zip", "archive", _with_bytes(b"PK\x03\x04")),
}
"""Ways to be broken: suffix, expected reason, and how it is written."""
