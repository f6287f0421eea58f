"""Adapter files on disk."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np

from prolora_jax.adapters.adapter import Adapter, AlphaZero
from prolora_jax.adapters.formats.dumping import Reader, concrete_format, dump
from prolora_jax.adapters.formats.header_strings import HASHES, stripped
from prolora_jax.adapters.formats.keys import (
    GGUF_FACTS,
    MLX_CONFIG,
    PEFT_WRAPPER,
    TREE_CONFIG,
    TREE_FORMATS,
    said_in,
)
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io.adapters import peft_folder
from prolora_jax.io.adapters.easydel_folder import is_easydel_folder, read_easydel
from prolora_jax.io.adapters.flax_file import is_flax_file, read_flax, write_flax
from prolora_jax.io.adapters.gguf_lora import is_gguf, read_gguf, write_gguf
from prolora_jax.io.adapters.hashes import file_hashes
from prolora_jax.io.adapters.mlx_folder import (
    is_mlx_folder,
    mlx_config_beside,
    read_mlx,
    write_mlx,
)
from prolora_jax.io.adapters.tree_folder import has_only_weights, read_tree, tree_items, write_tree
from prolora_jax.io.containers.orbax_tree import STEP, orbax_steps
from prolora_jax.io.containers.pickles import read_pickle
from prolora_jax.io.containers.signatures import is_pickle
from prolora_jax.io.containers.streamed import entries_text
from prolora_jax.io.containers.tensors import (
    outline_tensors,
    read_tensors,
    table_of,
    write_tensors,
)
from prolora_jax.io.guarded import is_regular
from prolora_jax.io.outputs.protected import refuse_replacing, with_content
from prolora_jax.io.outputs.reports import REPORT_ENDING

_log = logging.getLogger(__name__)

_LONGEST_NAME = 255
"""Bytes, on every file system in use."""
_LARGE = 2**29
"""Bytes from which a file is more likely a base model than an adapter, and slow to read."""
_SINGLE_FILE = frozenset({".safetensors", ".sft"})


def load_adapter(
    path: str | Path,
    base: BaseModelSpec | None = None,
    *,
    alpha_zero: AlphaZero = "refuse",
    allow_pickle: bool = False,
    quiet: bool = False,
    structured: bool = False,
) -> Adapter:
    """Read an adapter of any supported format.

    Args:
        path: a safetensors file, a Flax msgpack file, or a folder that peft, MLX-LM, tunix,
            MaxText or EasyDeL wrote;
            of a single file of the first two, `adapter_config.json` beside it gives the scale.
        base: the base model it was trained on; with it, flat names become dotted paths and
            every module is checked. Rows of q and k that MaxText and llama.cpp keep in another
            order are put in transformers' by it, and MaxText's scale of q.
        alpha_zero: what an alpha of 0 means: `rank` (alpha = rank), `zero` (no effect), or
            `refuse` the file.
        allow_pickle: whether a pickle may be read, too, by torch in a process of its own.
        quiet: log nothing where a file of peft's has no configuration beside it; who reads
            thousands says it once (`lacks_config`).
        structured: whether modules of other algorithms than plain LoRA are taken; they are no
            factors until `fitting.fit` has made some.

    Returns:
        The adapter, with factors in the file's own dtype and layout.

    Raises:
        UsageError: there is no such file.
        AdapterRefused: the file cannot be used; `code` says why.
    """
    path, flags = Path(path), ()
    if path.is_dir():
        unpickle = read_pickle if allow_pickle else None
        tensors, metadata, flags = _read_folder(path, unpickle=unpickle)
    elif is_gguf(path):
        tensors, metadata = read_gguf(path)
    elif is_flax_file(path):
        tensors, metadata = read_flax(path)
    else:
        pickled = allow_pickle and is_regular(path) and is_pickle(path)
        if not pickled and _is_large(path):
            # Its header alone may refuse it.
            outline_adapter(path, str(path), alpha_zero, structured=structured)
        tensors, metadata = tensors_of(path, pickled=pickled)
    adapter = parse(tensors, metadata, str(path), alpha_zero, structured=structured)
    for flag in flags:
        _log.warning("%s: %s", path, flag)
    adapter = replace(adapter, flags=(*adapter.flags, *flags)) if flags else adapter
    if lacks_config(adapter) and not path.is_dir() and not quiet:
        _log.warning("%s: no adapter_config.json beside it; its scale is taken to be 1", path)
    return adapter if base is None else resolve(adapter, base)


def tensors_of(
    path: Path, *, pickled: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and header strings of a single file, with peft's configuration that stands beside.

    Args:
        path: a safetensors file, or a pickle.
        pickled: whether the file is one, and may be read.

    Raises:
        UsageError: there is no such file.
        AdapterRefused: it cannot be read.
    """
    tensors, metadata = (read_pickle if pickled else read_tensors)(path, error=AdapterRefused)
    return tensors, said_in(metadata) | _config_beside(path, tensors)


def outline_adapter(
    path: Path, origin: str, alpha_zero: AlphaZero = "refuse", *, structured: bool = False
) -> Adapter:
    """What a safetensors file or a folder that peft wrote holds, from headers alone.

    Shapes, dtypes, names and the scale of a configuration are right; every number is 1.

    Args:
        path: the file or folder.
        origin: what to call it in messages.
        alpha_zero: as for `load_adapter`; an alpha that stands in a tensor is not looked at.
        structured: as for `load_adapter`.

    Raises:
        UsageError: there is no such file.
        AdapterRefused: the header says that the file cannot be used.
    """
    read = partial(outline_tensors, origin=origin)
    if path.is_dir():
        tensors, metadata, _ = _read_folder(path, read)
    else:
        tensors, metadata = read(path, error=AdapterRefused)
        metadata = said_in(metadata) | _config_beside(path, tensors)
    return parse(tensors, metadata, origin, alpha_zero, outline=True, structured=structured)


def lacks_config(adapter: Adapter) -> bool:
    """Whether an adapter is of peft's kind and nothing said its scale, which is then taken as 1."""
    return adapter.format == "peft" and HEADER_KEY not in adapter.metadata


def save_adapter(
    adapter: Adapter,
    path: str | Path,
    *,
    format: str | None = None,
    base: BaseModelSpec,
    metadata: Mapping[str, str] | None = None,
    strip_metadata: bool = False,
    overwrite: bool = False,
    read: Iterable[str | Path] = (),
    reader: Reader | None = None,
) -> None:
    """Write an adapter, whole or not at all.

    Header strings are carried over; hashes among them are computed anew.

    Args:
        adapter: what to write.
        path: where to; folders are made. Format `peft` makes a folder of it, unless it ends in
            `.safetensors`: one file has no field for the scale, which then goes into `up`.
        format: one of `adapters.formats.keys.FORMATS`; the adapter's own if None.
        base: the base model it is for, which knows the names.
        metadata: header strings to add or replace.
        strip_metadata: whether all header strings but `prolora`, `format` and those of the licence
            are left out.
        overwrite: whether an existing output may be replaced.
        read: files and folders that the adapter is made from, which are never replaced.
        reader: the program that a folder of peft's is for, where it reads less than peft.

    Raises:
        UsageError: the output exists and `overwrite` is not set, or the format is unknown or not
            the reader's.
        AdapterRefused: a module is not in `base`, or does not fit the format.
    """
    path, format = Path(path), format or concrete_format("same", adapter, base)
    folder = writes_folder(path, format)
    require_folder(path, format, reader)
    refuse_existing(path, overwrite, folder=folder, tree=format in TREE_FORMATS, read=read)
    folded = format == "peft" and not folder
    tensors, dumped = dump(adapter, format, base, folded=folded, reader=reader)
    header = {**dumped, **(metadata or {})}
    config = header.pop(HEADER_KEY, None)
    if strip_metadata:
        header = stripped(header)
    if format == "mlx":
        write_mlx(path, tensors, {MLX_CONFIG: dumped[MLX_CONFIG], **header}, _write)
    elif format in TREE_FORMATS:
        kept = {key: text for key, text in header.items() if key not in HASHES}
        write_tree(path, tensors, {TREE_CONFIG: dumped[TREE_CONFIG], **kept})
    elif format == "gguf":
        kept = {key: text for key, text in header.items() if key not in HASHES}
        write_gguf(path, tensors, {GGUF_FACTS: dumped[GGUF_FACTS], **kept})
    elif format == "flax":
        kept = {key: text for key, text in header.items() if key not in HASHES}
        write_flax(path, tensors, kept)
    elif folder and config is not None:
        peft_folder.write_folder(path, tensors, header | {HEADER_KEY: config}, _write)
    else:
        _write(path, file_tensors(tensors, format), header)


def require_folder(path: Path, format: str, reader: Reader | None) -> None:
    """Check that an output for a reader of peft's folders is one.

    Raises:
        UsageError: it is not.
    """
    if reader is not None and not (format == "peft" and writes_folder(path, format)):
        raise UsageError(
            f"{path}: found an output in format {format} for {reader}; expected a folder of "
            f"peft's, which it reads; leave the format away and name a folder",
            code=Refusal.BAD_OPTION,
        )


def file_tensors(tensors: Mapping[str, np.ndarray], format: str) -> Mapping[str, np.ndarray]:
    """What `dump` gave, under the keys of a single file.

    Args:
        tensors: by key.
        format: that they were dumped in.
    """
    return _without_component(tensors) if format == "peft" else tensors


def writes_folder(path: Path, format: str) -> bool:
    """Whether an output in this format under this name is a folder."""
    return format in {"mlx", *TREE_FORMATS} or (
        format == "peft" and path.suffix.lower() not in _SINGLE_FILE
    )


def refuse_existing(
    path: str | Path,
    overwrite: bool,
    *,
    folder: bool = False,
    tree: bool = False,
    read: Iterable[str | Path] = (),
) -> None:
    """Check that an output may be written, before any work is done for it.

    Args:
        path: the output.
        overwrite: whether an existing output may be replaced.
        folder: whether the output is a folder.
        tree: whether a step of a checkpoint is written into it.
        read: files and folders that the output is made from, which it never replaces.

    Raises:
        UsageError: the output exists and may not be replaced, or a folder stands where a file is
            to be, or the other way round, or its name or its report's is too long.
    """
    path = Path(path)
    too_long = unfit_output(path)
    if too_long is not None:
        raise UsageError(too_long, code=Refusal.BAD_NAME)
    if path.exists() and path.is_dir() != folder:
        found, expected = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise UsageError(
            f"{path}: found a {found}; expected the name of a {expected} to write; choose another",
            code=Refusal.OUTPUT_EXISTS,
        )
    if path.exists():
        places = (*peft_folder.own_files(path), *with_content(path / STEP)) if folder else (path,)
        refuse_replacing(path, places, read)
    steps = orbax_steps(path) if folder else []
    if steps and not (tree and steps == [STEP] and overwrite):
        _refuse_steps(path, steps, tree=tree)
    exists = peft_folder.has_adapter_files(path) if folder else path.exists()
    if exists and not overwrite:
        raise UsageError(
            f"{path}: output exists; expected a new name; choose another or allow overwriting "
            "(--overwrite)",
            code=Refusal.OUTPUT_EXISTS,
        )


def _refuse_steps(path: Path, steps: list[str], *, tree: bool) -> NoReturn:
    """Beside steps of a checkpoint an output would not be what is read: the newest step is."""
    advice = " or allow overwriting (--overwrite)" if tree and steps == [STEP] else ""
    raise UsageError(
        f"{path}: output exists: found a checkpoint, step {', '.join(steps)}; expected a new name; "
        f"choose another{advice}",
        code=Refusal.OUTPUT_EXISTS,
    )


def unfit_output(path: Path) -> str | None:
    """Why an output cannot have a name, or its report's cannot; None when both can."""
    report = len(os.fsencode(path.name)) + len(REPORT_ENDING)
    if report > _LONGEST_NAME:
        return (
            f"{path}: its report's name would have {report} bytes; expected at most "
            f"{_LONGEST_NAME}; give the adapter a shorter name"
        )
    return None


def _read_folder(
    path: Path,
    read: peft_folder.Read = read_tensors,
    unpickle: peft_folder.Read | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, str], tuple[str, ...]]:
    """Tensors and header strings of a folder, and what is to be said of what was read of it."""
    trees = tree_items(path)
    newest = next(trees, None)
    if newest is not None:
        return read_tree(path, chain((newest,), trees))
    if is_easydel_folder(path):
        return *read_easydel(path), ()
    try:
        if is_mlx_folder(path):
            return *read_mlx(path, read), ()
        return *peft_folder.read_folder(path, read, unpickle), ()
    except (UsageError, AdapterRefused) as failure:
        if failure.code is not Refusal.MISSING_FILE or not has_only_weights(path):
            raise
    raise AdapterRefused(
        f"{path}: found arrays that orbax wrote, and no factors of LoRA among them (w_lora_a, "
        f"kernel_lora_a); expected a tree of tunix's or MaxText's that has some; name the step in "
        f"which the trainer kept them",
        code=Refusal.NOT_AN_ADAPTER,
    )


def _config_beside(path: Path, keys: Mapping[str, object]) -> dict[str, str]:
    """The configuration beside a file of peft's, as the header string diffusers would have."""
    if not any(PEFT_WRAPPER in key for key in keys):
        return mlx_config_beside(path, keys)
    try:
        text = peft_folder.config_beside(path)
    except OSError as failure:
        raise peft_folder.unfit_config(path.parent / peft_folder.CONFIG, failure) from failure
    return {} if text is None else {HEADER_KEY: text}


def _is_large(path: Path) -> bool:
    try:
        return path.stat().st_size > _LARGE
    except OSError:
        return False  # why it cannot be read is said by its reader


def _without_component(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PEFT's keys as its own files of one network have them; several networks stay apart."""
    for alone in ("unet.", LM):
        if all(key.startswith(alone) for key in tensors if PEFT_WRAPPER in key):
            return {key.removeprefix(alone): array for key, array in tensors.items()}
    return dict(tensors)


def _write(path: Path, tensors: Mapping[str, np.ndarray], header: Mapping[str, str]) -> None:
    """Write a safetensors file; the hashes that its header has are computed anew."""
    # ascontiguousarray gives a scalar an axis; the reshape takes it away again.
    stored = {key: np.ascontiguousarray(a).reshape(a.shape) for key, a in tensors.items()}
    kept = {key: text for key, text in header.items() if key not in HASHES}
    wanted = HASHES & header.keys()
    if wanted:
        tables = table_of(stored)
        body = [stored[key].reshape(-1).view(np.uint8).data for key in tables]
        kept |= file_hashes(entries_text(tables), body, kept, wanted)
    write_tensors(path, stored, kept)
