"""Adapter files on disk."""

import logging
from collections.abc import Mapping
from pathlib import Path

from prolora_jax import formats
from prolora_jax.adapter import Adapter
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.formats.lora_config import HEADER_KEY
from prolora_jax.io.pickles import read_pickle
from prolora_jax.io.signatures import is_pickle
from prolora_jax.io.tensors import read_tensors, write_tensors

_log = logging.getLogger(__name__)

# They identify a file by its numbers: copied to other numbers, web sites and user interfaces
# take the file for the original.
_HASHES = frozenset({"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"})


def load_adapter(
    path: str | Path, base: BaseModelSpec | None = None, *, allow_pickle: bool = False
) -> Adapter:
    """Read an adapter file of any supported format.

    Args:
        path: a safetensors file; of one that peft wrote, `adapter_config.json` beside it gives
            the scale.
        base: the base model it was trained on; with it, flat names become dotted paths and
            every module is checked.
        allow_pickle: whether a pickle may be read, too, by torch in a process of its own.

    Returns:
        The adapter, with factors in the file's own dtype and layout.

    Raises:
        UsageError: there is no such file.
        AdapterRefused: the file cannot be used; `code` says why.
    """
    pickled = allow_pickle and Path(path).is_file() and is_pickle(Path(path))
    read = read_pickle if pickled else read_tensors
    tensors, metadata = read(path, error=AdapterRefused)
    adapter = formats.parse(tensors, metadata | _peft_config(Path(path), tensors), str(path))
    return adapter if base is None else formats.resolve(adapter, base)


def _peft_config(path: Path, keys: Mapping[str, object]) -> dict[str, str]:
    """The configuration beside a file of peft's, as the header string diffusers would have."""
    if not any(key.startswith("base_model.model.") for key in keys):
        return {}
    config = path.parent / "adapter_config.json"
    if config.is_file():
        return {HEADER_KEY: config.read_text(encoding="utf-8", errors="replace")}
    _log.warning("%s: no adapter_config.json beside it; its scale is taken to be 1", path)
    return {}


def save_adapter(
    adapter: Adapter,
    path: str | Path,
    *,
    format: str | None = None,
    base: BaseModelSpec,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an adapter file, whole or not at all.

    Header strings are carried over, without the hashes that would name it as another file.

    Args:
        adapter: what to write.
        path: where to; folders are made.
        format: one of `formats.FORMATS`; the adapter's own if None.
        base: the base model it is for, which knows the names.
        metadata: header strings to add or replace.
        overwrite: whether an existing file may be replaced.

    Raises:
        UsageError: the file exists and `overwrite` is not set, or the format is unknown.
        AdapterRefused: a module is not in `base`, or does not fit the format.
    """
    refuse_existing(path, overwrite)
    tensors, header = formats.dump(adapter, format or adapter.format, base)
    header = {key: text for key, text in header.items() if key not in _HASHES}
    write_tensors(path, tensors, header | dict(metadata or {}))


def refuse_existing(path: str | Path, overwrite: bool) -> None:
    """Check that an output may be written, before any work is done for it.

    Args:
        path: the output.
        overwrite: whether an existing file may be replaced.

    Raises:
        UsageError: the file exists and may not be replaced, or the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(
            f"{path}: found a folder; expected the name of a file to write",
            code=Refusal.OUTPUT_EXISTS,
        )
    if path.exists() and not overwrite:
        raise UsageError(
            f"{path}: output exists; expected a new name; choose another or allow overwriting "
            "(--overwrite)",
            code=Refusal.OUTPUT_EXISTS,
        )
