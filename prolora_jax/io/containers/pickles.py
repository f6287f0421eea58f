"""Pickles (.pt .bin .ckpt .pth), for those who allow them: opened by another process.

Opening a pickle can run code. torch's restricted reader builds nothing but tensors, and has had
holes; so it runs in a child process with a time limit and a memory limit, and what comes back is a
safetensors file, which is read like any other.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from prolora_jax.errors import ProloraError, Refusal, UsageError
from prolora_jax.io.containers.tensors import read_tensors

CHILD = Path(__file__).with_name("pickle_child.py")
SECONDS = 60.0
"""For a small file; importing torch takes most of it on a busy machine."""
BYTES_PER_SECOND = 20e6
MAX_ANSWER = 2_000

_REMEDIES = {
    Refusal.NOT_AN_ADAPTER: "give an adapter file",
    Refusal.MISSING_LIBRARY: "pip install torch, or convert it to safetensors elsewhere",
    Refusal.FILE_TOO_LARGE: "fetch it again, as safetensors",
}
_REMEDY = "convert it to safetensors in a sandbox if you trust it"


def read_pickle(
    path: str | os.PathLike[str], *, error: type[ProloraError]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a pickle by name, and its header strings, of which it has none.

    Args:
        path: the pickle.
        error: what to raise when the file is bad: `AdapterRefused` or `BaseModelError`.

    Returns:
        As `read_tensors`.
    """
    with _as_safetensors(Path(path), error) as file:
        return read_tensors(file, error=error, origin=path)


@contextmanager
def _as_safetensors(path: Path, error: type[ProloraError]) -> Iterator[Path]:
    """A temporary safetensors file with the tensors of a pickle.

    `{"state_dict": {...}}` is unwrapped; a list, or anything but tensors by name, is refused.

    Yields:
        The file; it is gone when the block ends.
    """
    with TemporaryDirectory(prefix="prolora-") as folder:
        target = Path(folder) / "tensors.safetensors"
        seconds = SECONDS + path.stat().st_size / BYTES_PER_SECOND
        try:
            # -P: a torch.py in the present folder must not pass for the library.
            child = subprocess.run(
                [sys.executable, "-P", str(CHILD), str(path.resolve()), str(target)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            found = f"took longer than {seconds:.0f} seconds to read"
            raise error(_message(path, found, Refusal.PICKLE), code=Refusal.PICKLE) from None
        if child.returncode != 0 or not target.is_file():
            code, found = _answer(child.stdout, child.returncode)
            kind = UsageError if code is Refusal.MISSING_LIBRARY else error
            raise kind(_message(path, found, code), code=code)
        yield target


def _answer(text: bytes, status: int) -> tuple[Refusal, str]:
    """What the child said. It has read a hostile file: nothing it says is taken on trust."""
    try:
        answer = json.loads(text[:MAX_ANSWER])
        found = "".join(c if c.isprintable() else " " for c in str(answer["found"]))
        return Refusal(answer["code"]), found[:400]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Refusal.PICKLE, f"made its reader fail (exit status {status})"


def _message(path: Path, found: str, code: Refusal) -> str:
    return f"{path}: {found}; expected a pickle of tensors by name; {_REMEDIES.get(code, _REMEDY)}"
