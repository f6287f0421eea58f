"""`tokenizer.json` beside a language model's weights, as it stands there."""

from pathlib import Path

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.guarded import is_regular, read_small

_FILE = "tokenizer.json"
_LARGEST = 2**27
"""Bytes of a tokenizer; of a quarter of a million tokens it has some thirty million."""


def read_tokenizer_json(path: Path) -> bytes | None:
    """The content of a base model's `tokenizer.json`; None where there is none.

    Args:
        path: the model's folder, or one of the files in it.

    Raises:
        BaseModelError: it is there and cannot be read, or is larger than any tokenizer.
    """
    file = (path if path.is_dir() else path.parent) / _FILE
    if not is_regular(file):
        return None
    try:
        return read_small(file, _LARGEST)
    except OSError as failure:
        raise BaseModelError(
            f"{file}: {failure.strerror}; expected the model's tokenizer, by which rows of its "
            f"embedding are told; fetch the file again, or take it away",
            code=Refusal.UNREADABLE_BASE,
        ) from None
