"""Reading and writing safetensors files, as NumPy arrays.

The library opens a file after `header` has: that one has the limits, and says what is wrong. Here
is what a user needs beside it: which file, what it is instead, and what to do.
"""

import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from prolora_jax.errors import AdapterRefused, ProloraError, Refusal, UsageError
from prolora_jax.io.containers.safetensors_header import BadHeader, SafetensorsHeader, read_header
from prolora_jax.io.containers.signatures import signature
from prolora_jax.io.containers.streamed import write_each
from prolora_jax.io.guarded import irregular, open_regular

# The library cannot hand these to NumPy: they are taken from the file's bytes.
_EIGHT_BIT_FLOATS = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_NUMPY = {
    **{"F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16)},
    **{"BF16": np.dtype(ml_dtypes.bfloat16), "BOOL": np.dtype(np.bool_), **_EIGHT_BIT_FLOATS},
    **{
        f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}")
        for kind in "IU"
        for bits in (8, 16, 32, 64)
    },
}
_VIEWED = {"F32": np.dtype(np.float32), **_EIGHT_BIT_FLOATS}
WEIGHT_DTYPES = frozenset({"F64", "F32", "F16", "BF16", *_EIGHT_BIT_FLOATS})
READABLE_DTYPES = WEIGHT_DTYPES | {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
# Ends of names beside a weight in few bits: without them its numbers mean nothing.
_QUANTISED = (
    (".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map", ".SCB", ".weight_format")
    + (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".weight_scale_inv")
    + (".qweight", ".qzeros", ".g_idx", ".comfy_quant", ".bitsandbytes__nf4")
    + (".bitsandbytes__fp4",)
)
_QUANTISED_MARK = "scaled_fp8"
MAX_WHOLE_FILE = 16 * 2**30
"""Bytes of a file that is read whole. The largest adapters have 2 or 3 GB."""


class TensorFile:
    """An open safetensors file; tensors are read one at a time, when asked for.

    Attributes:
        path: the file.
        keys: names of its tensors, sorted.
        metadata: header strings.
        identity: which file was opened: its inode, time of change and size.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        error: type[ProloraError],
        origin: str | os.PathLike[str] | None = None,
        packed: bool = False,
    ):
        """Open a file and read its header.

        Args:
            path: a safetensors file.
            error: what to raise when the file is bad: `AdapterRefused` or `BaseModelError`.
            origin: what to call the file in messages; `path` if None.
            packed: whether there may be weights packed into 8 bits or fewer, whose numbers do not
                stand for themselves.

        Raises:
            UsageError: there is no such file, or it cannot be opened.
            ProloraError: (as `error`) it is no intact safetensors file.
        """
        self.path = Path(path)
        self._origin = path if origin is None else origin
        self._error = error
        _require_file(self.path)
        self._header = self._read_header()
        try:
            with open_regular(self.path) as file:
                # Looks at holes, overlaps and dtypes, and holds on to the file.
                self._file = safe_open(_reopened(file, self.path), framework="numpy")
                self._bytes = np.memmap(file, np.uint8, mode="r").view(np.ndarray)
                status = os.fstat(file.fileno())
        except (SafetensorError, OSError, ValueError) as failure:  # ValueError: emptied meanwhile
            raise self._bad(
                Refusal.NOT_SAFETENSORS, f"found no readable header ({failure}); fetch it again"
            ) from failure
        self._entries = self._header.tensors
        last = max((entry.end for entry in self._entries.values()), default=0)
        self._size = self._header.body + last
        if not packed:
            self._refuse_quantised()
        self.identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        self.keys: tuple[str, ...] = tuple(self._entries)
        self.metadata: dict[str, str] = dict(self._header.metadata)

    def _read_header(self) -> SafetensorsHeader:
        try:
            return read_header(self.path)
        except BadHeader as failure:
            code, found = signature(self.path) or (failure.code, str(failure))
            if code is Refusal.PICKLE:
                allow = " or allow it (--allow-pickle)" * (self._error is AdapterRefused)
                found += f"; convert it to safetensors in a sandbox and give that{allow}"
            raise self._bad(code, found) from failure
        except OSError as failure:
            raise self._bad(
                Refusal.MISSING_FILE, f"cannot be read ({failure.strerror}); check the disk"
            ) from failure

    def _bad(self, code: Refusal, found: str) -> ProloraError:
        text = " ".join(found.split())
        return self._error(f"{self._origin}: {text} (expected a safetensors file)", code=code)

    def _refuse_quantised(self) -> None:
        for key in self._entries:
            if key.endswith(_QUANTISED) or key.rsplit(".", 1)[-1] == _QUANTISED_MARK:
                raise self._error(
                    f"{self._origin}: found {key}, which belongs to a weight packed into 8 bits or "
                    f"fewer; expected numbers that stand for themselves (F16, BF16, F32); unpack "
                    f"the file with the program that wrote it",
                    code=Refusal.UNSUPPORTED_DTYPE,
                )

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self._entries[key].shape

    def dtype(self, key: str) -> str:
        """The dtype code of a tensor as the header has it, `F32` or `BF16`."""
        return self._entries[key].dtype

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by key."""
        return {key: self.shape(key) for key in self.keys}

    def tensor(self, key: str) -> np.ndarray:
        """Read one tensor, in its stored dtype.

        Raises:
            ProloraError: (as the reader's error) its dtype is not supported.
        """
        self._require_dtype(key, READABLE_DTYPES)
        entry = self._entries[key]
        if entry.dtype in _EIGHT_BIT_FLOATS:
            return self.view(key).copy()
        return self._file.get_tensor(key)

    def read_all(self) -> dict[str, np.ndarray]:
        """Read every tensor by ordinary reading, in the order of the file.

        A mapped file that is cut off while it is read ends the process; here that is an error,
        and so is any other change.

        Raises:
            OSError: the disk does not give it.
            ProloraError: (as the reader's error) a dtype is not supported, or the file changed.
        """
        found: dict[str, np.ndarray] = {}
        with open_regular(self.path) as file:
            before = os.fstat(file.fileno())
            for key in sorted(self.keys, key=lambda key: self._entries[key].start):
                self._require_dtype(key, READABLE_DTYPES)
                entry = self._entries[key]
                found[key] = array = np.empty(entry.shape, _NUMPY[entry.dtype])
                wanted = memoryview(array.reshape(-1).view(np.uint8).data)
                file.seek(self._header.body + entry.start)
                while wanted and (count := file.readinto(wanted)):
                    wanted = wanted[count:]
                if wanted:
                    raise self._changed()
            after = os.fstat(file.fileno())
        changes = ((s.st_size, s.st_mtime_ns) for s in (before, after))
        if len({*changes}) > 1 or before.st_size != self._size:
            raise self._changed()
        return {key: found[key] for key in self.keys}

    def _changed(self) -> ProloraError:
        return self._error(
            f"{self._origin}: changed while it was read; expected a file that nobody writes; try "
            f"again when it is whole",
            code=Refusal.CHANGED,
        )

    def placeholder(self, key: str) -> np.ndarray:
        """An array of ones with the shape and dtype of a tensor, which takes no memory.

        Raises:
            ProloraError: (as the reader's error) its dtype is not supported.
        """
        self._require_dtype(key, READABLE_DTYPES)
        entry = self._entries[key]
        return np.broadcast_to(np.ones((), _NUMPY[entry.dtype]), entry.shape)

    def view(self, key: str) -> np.ndarray:
        """One tensor without reading it: a read-only array over the mapped file.

        It is read where it is touched, into memory that the system can take back. The file may
        be removed or replaced meanwhile, but must not be written to in place.

        Args:
            key: of a float32 or 8-bit float tensor.

        Raises:
            ProloraError: (as the reader's error) its dtype is another one.
        """
        self._require_dtype(key, frozenset(_VIEWED))
        entry = self._entries[key]
        return self.raw(key).view(_VIEWED[entry.dtype]).reshape(entry.shape)

    def raw(self, key: str) -> np.ndarray:
        """The bytes of one tensor without reading them, as `view`."""
        return self._bytes[slice(*self.place(key))]

    def place(self, key: str) -> tuple[int, int]:
        """First byte of a tensor in the file, and the end of its bytes."""
        entry, start = self._entries[key], self._header.body
        return start + entry.start, start + entry.end

    def require_weight(self, key: str) -> None:
        """Check, without reading a tensor, that its dtype is one for weights: floats.

        Raises:
            ProloraError: (as the reader's error) its dtype is not supported.
        """
        self._require_dtype(key, WEIGHT_DTYPES)

    def _require_dtype(self, key: str, supported: frozenset[str]) -> None:
        dtype = self.dtype(key)
        if dtype not in supported:
            raise self._error(
                f"{self._origin}: tensor {key} has dtype {dtype}; expected F16, BF16, F32 or F64; "
                f"convert the file to one of these",
                code=Refusal.UNSUPPORTED_DTYPE,
            )


def read_tensors(
    path: str | os.PathLike[str],
    *,
    error: type[ProloraError],
    origin: str | os.PathLike[str] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a whole safetensors file.

    Floats of 8 bits come as float16, which has every number of both kinds: neither readers of
    adapters nor NumPy's arithmetic know the narrow ones.

    Args:
        path: a safetensors file.
        error: what to raise when the file is bad: `AdapterRefused` or `BaseModelError`.
        origin: what to call the file in messages; `path` if None.

    Returns:
        The tensors by key, sorted by key, and the header strings.

    Raises:
        UsageError: there is no such file, or it cannot be opened.
        ProloraError: (as `error`) it is no intact safetensors file of supported dtypes.
    """
    file = _whole_file(path, error, origin)
    try:
        return {key: _widened(array) for key, array in file.read_all().items()}, file.metadata
    except OSError as failure:
        raise error(
            f"{origin or path}: cannot be read ({failure.strerror}); check the disk",
            code=Refusal.MISSING_FILE,
        ) from failure


def outline_tensors(
    path: str | os.PathLike[str],
    *,
    error: type[ProloraError],
    origin: str | os.PathLike[str] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What `read_tensors` would give, from the header alone: every number of an array is 1.

    The arrays are read-only and take no memory.

    Raises:
        UsageError: there is no such file, or it cannot be opened.
        ProloraError: (as `error`) it is no intact safetensors file of supported dtypes.
    """
    file = _whole_file(path, error, origin)
    return {key: _widened(file.placeholder(key)) for key in file.keys}, file.metadata


def _whole_file(
    path: str | os.PathLike[str],
    error: type[ProloraError],
    origin: str | os.PathLike[str] | None,
) -> TensorFile:
    file = TensorFile(path, error=error, origin=origin)
    size = file.path.stat().st_size
    if size > MAX_WHOLE_FILE:
        raise error(
            f"{origin or path}: found {size} bytes; expected an adapter of at most "
            f"{MAX_WHOLE_FILE}; give the adapter, not a base model",
            code=Refusal.FILE_TOO_LARGE,
        )
    return file


def _widened(array: np.ndarray) -> np.ndarray:
    if array.dtype not in _EIGHT_BIT_FLOATS.values():
        return array
    if 0 in array.strides:  # of a placeholder: stays one
        return np.broadcast_to(np.ones((), np.float16), array.shape)
    return array.astype(np.float16)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: where to; an existing file is replaced.
        tensors: arrays by key; bfloat16 ones by `ml_dtypes`.
        metadata: header strings.

    Raises:
        OutputError: it cannot be written.
    """
    tables = table_of(tensors)
    write_each(path, tables, lambda key: tensors[key].astype(tables[key][1], copy=False), metadata)


def table_of(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of tensors by key, in the order in which `write_tensors` stores them."""
    # Wide numbers first, as the library does: then each starts at a multiple of its own size.
    ordered = sorted(tensors, key=lambda key: (-tensors[key].itemsize, key))
    # The format is little-endian; arrays from elsewhere may not be.
    return {key: (tensors[key].shape, tensors[key].dtype.newbyteorder("<")) for key in ordered}


def _reopened(file: BufferedReader, path: Path) -> Path:
    """A path to the very file that is open, where the system has such; else its own."""
    descriptor = Path("/dev/fd", str(file.fileno()))
    return descriptor if descriptor.exists() else path


def _require_file(path: Path) -> None:
    remedy = None
    try:
        if path.is_dir():
            remedy = "found a folder; expected a safetensors file; name the file in it"
        elif not path.exists():
            remedy = "no such file; check the path"
        elif (found := irregular(path.stat().st_mode)) is not None:
            remedy = f"found {found}; expected a safetensors file; name a file"
        elif not os.access(path, os.R_OK):
            remedy = "found a file that may not be read; check its permissions"
    except OSError as failure:  # a name that is too long, a folder that may not be entered
        remedy = f"cannot be looked at ({failure.strerror}); check the path"
    if remedy is not None:
        raise UsageError(f"{path}: {remedy}", code=Refusal.MISSING_FILE)
