"""Operators of pairs of weights on disk: one safetensors file each, written whole or not at all."""

from pathlib import Path

import msgspec

from prolora_jax.errors import ProloraError, UsageError
from prolora_jax.io.atomic import write_bytes
from prolora_jax.io.tensors import TensorFile, write_tensors
from prolora_jax.operator_store import Comparison
from prolora_jax.operators import Form, ModuleOperators, Side, SideOperator

SUFFIX = ".operators.safetensors"
COMPARISON_SUFFIX = ".comparison.json"
_SIDES = ("left", "right")


class _SideRecord(msgspec.Struct):
    """What a header says of one side."""

    form: Form
    still: int


class OperatorFolder:
    """An `OperatorStore` in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def has(self, key: str) -> bool:
        """Whether operators are there; a damaged file is found by `get` only."""
        return self._path(key).is_file()

    def get(self, key: str) -> ModuleOperators | None:
        """Operators; None when they are not there or their file is damaged."""
        if not self.has(key):
            return None
        try:
            file = TensorFile(self._path(key), error=UsageError)
            return ModuleOperators(*(_side(file, name) for name in _SIDES))
        except (ProloraError, KeyError, msgspec.MsgspecError):
            return None  # prepared again and replaced: the store is only a cache

    def put(self, key: str, operators: ModuleOperators) -> None:
        """Write operators; older ones of the same key are replaced."""
        tensors, header = {}, {}
        for name, side in zip(_SIDES, operators, strict=True):
            tensors[f"{name}.analysis"] = side.operator.analysis
            for i, synthesis in enumerate(side.operator.synthesis):
                tensors[f"{name}.synthesis.{i}"] = synthesis
            header[name] = msgspec.json.encode(_SideRecord(side.form, side.still)).decode()
        write_tensors(self._path(key), tensors, header)

    def comparison(self, key: str) -> Comparison | None:
        """A comparison; None when it is not there or its file is damaged."""
        try:
            content = self._comparison_path(key).read_bytes()
            return msgspec.json.decode(content, type=Comparison)
        except (OSError, msgspec.MsgspecError):
            return None

    def put_comparison(self, key: str, comparison: Comparison) -> None:
        """Write a comparison."""
        write_bytes(self._comparison_path(key), msgspec.json.encode(comparison))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _comparison_path(self, key: str) -> Path:
        return self.folder / f"{key}{COMPARISON_SUFFIX}"


def _side(file: TensorFile, name: str) -> Side:
    record = msgspec.json.decode(file.metadata[name], type=_SideRecord)
    synthesis = [file.tensor(f"{name}.synthesis.{i}") for i in range(len(record.form.parts))]
    operator = SideOperator(file.tensor(f"{name}.analysis"), tuple(synthesis))
    return Side(record.form, operator, record.still)
