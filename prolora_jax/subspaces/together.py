"""Processes that compute together, step by step: none goes on when one has failed.

All of them take the same steps in the same order, since what they send each other has no address:
a process that would leave out a step would be waited for. So every step begins with a word from
each whether all is well with it, and ends for all with an error where it is not. A process that
dies says nothing; then what waits for it ends with an error of JAX's, at once or after the time of
`jax.distributed.initialize(heartbeat_timeout_seconds=...)`.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from prolora_jax.errors import ProloraError, Refusal, UsageError

_PIECE_WORDS = 2**22
"""Of four bytes, sent at a time: every device holds two pieces, whatever is sent."""

_LEAST_WORDS = 2**10
_HEAD = 64
"""Numbers of a word: whether something has failed, and what will be sent."""

_DTYPES = tuple(map(np.dtype, ("float32", "float64", "uint8")))

Result = TypeVar("Result")


class Together:
    """All processes of `jax.distributed`, from the view of one.

    Args:
        mesh: devices of all of them.

    Raises:
        UsageError: it lacks those of some; which is found by each of them.
    """

    def __init__(self, mesh: Mesh):
        self.index, self.count = jax.process_index(), jax.process_count()
        there = {device.process_index for device in mesh.devices.flat}
        if there != set(range(self.count)):
            raise UsageError(
                f"mesh: found devices of {len(there)} of {self.count} processes; expected those "
                "of one process, or of all; make it of jax.devices()",
                code=Refusal.BAD_OPTION,
            )

    def do(self, make: Callable[[], Result]) -> Result:
        """Do something that may fail here and not elsewhere.

        Args:
            make: what; it sends nothing.

        Returns:
            What it has made.

        Raises:
            ProloraError: it has failed elsewhere.
            BaseException: what it has raised here.
        """
        failure, made = None, []
        try:
            made.append(make())
        except BaseException as caught:  # noqa: BLE001 (raised again, when the others know)
            failure = caught
        self._agree(self.all_say(_head((), failed=failure is not None)), failure)
        return made[0]

    def give_up(self) -> None:
        """Have the next step of all others fail, whichever it is: all begin with the same word."""
        self.all_say(_head((), failed=True))

    def all_say(self, numbers: np.ndarray) -> np.ndarray:
        """What every process says, `(processes, n)`: booleans, or integers of 32 bits."""
        said = multihost_utils.process_allgather(np.asarray(numbers, np.int32))
        return np.asarray(said).astype(numbers.dtype)

    def from_owner(self, owner: int, make: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Arrays that one process has, in every process, bit for bit.

        Args:
            owner: its number.
            make: gives them there; of float32, float64 or bytes, and not large in number.

        Raises:
            ProloraError: it has failed there.
            BaseException: what it has raised here.
        """
        arrays: list[np.ndarray] = []
        failure = None
        if self.index == owner:
            try:
                arrays = [np.ascontiguousarray(array) for array in make()]
            except BaseException as caught:  # noqa: BLE001 (raised again, when the others know)
                failure = caught
        heads = self.all_say(_head(arrays, failed=failure is not None))
        self._agree(heads, failure)
        tables = _tables(heads[owner])
        size = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in tables)
        given = [array.reshape(-1).view(np.uint8) for array in arrays]
        sent = self._sent(owner, np.concatenate(given) if given else np.empty(0, np.uint8), size)
        found, start = [], 0
        for dtype, shape in tables:
            end = start + dtype.itemsize * int(np.prod(shape))
            found.append(sent[start:end].copy().view(dtype).reshape(shape))
            start = end
        return found

    def _agree(self, heads: np.ndarray, failure: BaseException | None) -> None:
        if failure is not None:
            raise failure
        failed = np.flatnonzero(heads[:, 0])
        if len(failed):
            number = int(failed[0])
            raise ProloraError(
                f"process {number} of {self.count}: has failed; expected all processes of the "
                "mesh to go on; see what it says, and start all of them again: what was done is "
                "kept",
                code=Refusal.WORKER_ENDED,
            )

    def _sent(self, owner: int, given: np.ndarray, size: int) -> np.ndarray:
        """So many bytes of one process, piece by piece; few sizes, as each is compiled anew."""
        words = np.zeros(-(-size // 4), np.uint32)
        if self.index == owner:
            words.view(np.uint8)[:size] = given
        for start in range(0, len(words), _PIECE_WORDS):
            piece = words[start : start + _PIECE_WORDS]
            length = max(_LEAST_WORDS, 1 << (len(piece) - 1).bit_length())
            padded = np.zeros(length, np.uint32)
            padded[: len(piece)] = piece
            there = multihost_utils.broadcast_one_to_all(padded, self.index == owner)
            piece[:] = np.asarray(there)[: len(piece)]
        return words.view(np.uint8)[:size]


def _head(arrays: Sequence[np.ndarray], *, failed: bool) -> np.ndarray:
    told = [int(failed), len(arrays)]
    for array in arrays:
        told += [_DTYPES.index(array.dtype), array.ndim, *array.shape]
    return np.array(told + [0] * (_HEAD - len(told)), np.int32)


def _tables(head: np.ndarray) -> list[tuple[np.dtype, tuple[int, ...]]]:
    numbers = iter(head[1:].tolist())
    tables = []
    for _ in range(next(numbers)):
        dtype = _DTYPES[next(numbers)]
        tables.append((dtype, tuple(next(numbers) for _ in range(next(numbers)))))
    return tables
