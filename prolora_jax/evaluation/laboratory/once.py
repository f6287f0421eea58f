"""What is computed once: answers of nets to rows they were asked before, and compiled programs.

Many arms of a sweep are the same file, samples of a base are the same for all that is moved from
it, and a student is judged on rows on which its teachers have answered. All that is equal is equal
by content here, so no figure depends on what was remembered.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path

import jax
import numpy as np

from prolora_jax.evaluation.laboratory.adapters import TrainedFactors
from prolora_jax.evaluation.laboratory.diffusion import Predict

ROOM = 256 << 20
"""Bytes of answers that are remembered: samples of both nets, with and without some adapters."""


class Answers:
    """Answers of nets by net and rows; those that were not asked for longest are forgotten.

    Args:
        room: bytes of all answers together.
    """

    def __init__(self, room: int = ROOM):
        self.room, self.held = room, 0
        self._known: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def remembered(self, name: bytes, net: Callable[[], Predict]) -> Predict:
        """A net that is asked only what it has not answered yet.

        Args:
            name: of the net: another one for other parameters.
            net: makes it, when it is first asked.

        Returns:
            The net; its answers are shared and cannot be written to.
        """
        made: list[Predict] = []

        def predict(noisy: np.ndarray, times: np.ndarray, words: np.ndarray) -> np.ndarray:
            key = _digest(name, noisy, times, words)
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            if not made:
                made.append(net())
            answer = made[0](noisy, times, words)
            answer.flags.writeable = False
            self._keep(key, answer)
            return answer

        return predict

    def _keep(self, key: bytes, answer: np.ndarray) -> None:
        self._known[key] = answer
        self.held += answer.nbytes
        while self.held > self.room:
            self.held -= self._known.popitem(last=False)[1].nbytes


def name_of(base: str, factors: Mapping[str, TrainedFactors], scale: float = 1.0) -> bytes:
    """What a base model with an adapter is called: the same for the same updates.

    Args:
        base: name of the base model.
        factors: of the adapter; none for the base alone.
        scale: of the adapter.

    Returns:
        A digest of all of them.
    """
    parts = [(path, *map(np.asarray, factors[path])) for path in sorted(factors)]
    told = f"{base} {float(scale) if parts else 1.0}"
    return _digest(told.encode(), *(part for entry in parts for part in entry))


def keep_compiled(folder: Path) -> None:
    """Let later processes load what this one compiles, from a folder of the laboratory's.

    A third of a cell's time was its compilation. JAX_COMPILATION_CACHE_DIR is heeded as elsewhere.

    Args:
        folder: of the laboratory.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder.resolve() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _digest(*parts: bytes | str | np.ndarray | jax.Array) -> bytes:
    """Of texts and arrays, each set off from the next by its kind and shape."""
    made = blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str | bytes):
            text = part.encode() if isinstance(part, str) else part
            made.update(f"|{len(text)}|".encode() + text)
        else:
            array = np.asarray(part)
            # By its name: NumPy's own code of bfloat16 is that of any two bytes.
            made.update(f"|{array.dtype.name}{array.dtype.str}{array.shape}|".encode())
            # As bytes: bfloat16 has no buffer of its own.
            made.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return made.digest()
