"""Host records of an adapter: every tensor of a file is in `modules` or in `extras`.

NumPy and strings only; nothing here starts a device. Factors keep the file's own dtype and
layout, so that a conversion can give back the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import numpy as np

AlphaZero = Literal["refuse", "rank", "zero"]
"""What an alpha of 0 means: a refusal, alpha = rank, or no effect; programs disagree."""


@dataclass(frozen=True)
class StructuredModule:
    """The tensors of one layer whose update is something other than two factors.

    Attributes:
        path: as `LoraModule.path`.
        algorithm: its name, a key of `algorithms.table.ALGORITHMS`.
        parts: tensors by part name, as the file has them.
        alpha: scale numerator; None when the file has none.
        settings: fields of peft's configuration for its component; none without one.
    """

    path: str
    algorithm: str
    parts: Mapping[str, np.ndarray]
    alpha: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype:
        """The narrowest dtype that holds what any part holds."""
        found = {part.dtype for part in self.parts.values()}
        if len(found) == 1:
            return found.pop()
        # At least float32: NumPy has no answer for float16 beside bfloat16.
        return reduce(np.promote_types, found, np.dtype(np.float32))


class Gains(NamedTuple):
    """What DoRA multiplies the sum of a weight and its update with, row by row or by channels.

    Attributes:
        values: the magnitude divided by the norm that the sum had, float64; 1 where it had none.
        per_row: whether there is one for each output row; one for each input channel otherwise.
    """

    values: np.ndarray
    per_row: bool


class MadeFrom(NamedTuple):
    """What another algorithm's update lost when it became factors.

    Attributes:
        algorithm: its name, as `loha`.
        kept: share of the update's squared norm that the factors hold.
        dtype: of the file, which the factors are wider than.
        gains: of a DoRA whose factors are its BA alone; None where they hold the whole update.
        own: the module itself, where it can be written as it is (LoHa, LoKr).
    """

    algorithm: str
    kept: float
    dtype: str
    gains: Gains | None = None
    own: StructuredModule | None = None


@dataclass(frozen=True)
class LoraModule:
    """The factors of one layer, as the file has them.

    Attributes:
        path: dotted diffusers path with component
            (`unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`), or, until
            `formats.resolve` has seen a base model, the flat name of a kohya file
            (`lora_unet_input_blocks_4_1_...`).
        down: `(rank, in)`, or `(rank, in, kh, kw)` for a convolution.
        up: `(out, rank)`, or `(out, rank, 1, 1)` for a convolution.
        alpha: scale numerator; None when the file has none, and then the scale is 1.
        made_from: the other algorithm that the factors were made from; None for plain LoRA.
    """

    path: str
    down: np.ndarray
    up: np.ndarray
    alpha: float | None = None
    made_from: MadeFrom | None = None

    @property
    def dtype(self) -> np.dtype:
        """Of the file: of `up`, unless the factors were made and are wider."""
        return self.up.dtype if self.made_from is None else np.dtype(self.made_from.dtype)

    @property
    def rank(self) -> int:
        """Number of rank columns."""
        return self.down.shape[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the weight that the update is for, as far as the factors say it."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def nbytes(self) -> int:
        """What the factors take in memory."""
        return self.up.nbytes + self.down.nbytes

    @property
    def scale(self) -> float:
        """`alpha / rank`, or 1 when the file has no alpha for this module (formats.md 2.3)."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def norm(self) -> float:
        """Frobenius norm of the update, scale included; float64, no dense update is formed."""
        down = self.down.reshape(self.rank, -1).astype(np.float64)
        up = self.up.reshape(-1, self.rank).astype(np.float64)
        # Rounding can leave a tiny negative number where the update is zero.
        squared = max(float(np.sum((up.T @ up) * (down @ down.T))), 0.0)
        return abs(self.scale) * squared**0.5

    def padded(self, rank: int) -> "LoraModule":
        """The same update at a higher rank: zero columns, and an alpha that grows with it."""
        missing = (0, rank - self.rank)
        alpha = None if self.alpha is None else self.scale * rank
        up_axes = [(0, 0), missing, *[(0, 0)] * (self.up.ndim - 2)]
        return replace(
            self,
            down=np.pad(self.down, [missing, *[(0, 0)] * (self.down.ndim - 1)]),
            up=np.pad(self.up, up_axes),
            alpha=alpha,
        )


Part = Literal["bias", "weight", "layer", "saved", "rows", "none"]


@dataclass(frozen=True)
class Companion:
    """A tensor beside the pairs that no projection moves.

    Attributes:
        key: in the file.
        path: of the layer, as `LoraModule.path`; of a norm, too, which no spec lists.
        part: what it is: a vector that is added to the layer's `bias` or, of a norm, to its
            `weight`; a whole `layer`; one of a language model that is `saved` in its layer's place,
            by peft's `modules_to_save`; whole `rows` of an embedding; or `none`, a tensor without
            effect.
        array: the numbers; of a bias and a weight what is added, scale included.
        rows: of the embedding that `array` has, in its order.
    """

    key: str
    path: str
    part: Part
    array: np.ndarray
    rows: tuple[int, ...] = ()

    @property
    def norm(self) -> float:
        """Norm of what is added; 0 of a whole layer and of whole rows, which are no differences."""
        if self.part not in {"bias", "weight"}:
            return 0.0
        return float(np.linalg.norm(self.array.astype(np.float64)))


@dataclass(frozen=True)
class Adapter:
    """One adapter file.

    Attributes:
        modules: the modules, in the order of their paths in the file.
        format: key convention, one of `formats.FORMATS`.
        extras: tensors that are carried along unchanged, by their full key.
        metadata: header strings of the file.
        origin: where it came from, for messages.
        companions: tensors beside the pairs that no projection moves.
        flags: what had to be decided to read it, for reports: where its scale comes from.
        structured: modules of other algorithms, until `fitting.fit` has made factors of them.
        outline: whether the numbers stand for others, and only shapes and names are right.
        read_as: fingerprint of the file's content, where factors were made from it.
    """

    modules: tuple[LoraModule, ...]
    format: str
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    origin: str = "adapter"
    companions: tuple[Companion, ...] = ()
    flags: tuple[str, ...] = ()
    structured: tuple[StructuredModule, ...] = ()
    outline: bool = False
    read_as: str | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks, ascending."""
        return tuple(sorted({module.rank for module in self.modules}))

    @property
    def is_flat(self) -> bool:
        """Whether module paths are still the flat names of a kohya file (see `LoraModule`)."""
        return any("." not in module.path for module in (*self.modules, *self.structured))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content (paths, alphas, shapes, dtypes, numbers), whatever its order."""
        if self.read_as is not None:
            return self.read_as
        digest = sha256()
        for module in sorted(self.modules, key=lambda m: m.path):
            digest.update(f"{module.path} {module.alpha}".encode())
            _update(digest, module.down)
            _update(digest, module.up)
        for module in sorted(self.structured, key=lambda m: m.path):
            digest.update(f"{module.path} {module.algorithm} {module.alpha}".encode())
            for name in sorted(module.parts):
                digest.update(name.encode())
                _update(digest, module.parts[name])
        for key in sorted(self.extras):
            digest.update(key.encode())
            _update(digest, self.extras[key])
        for companion in sorted(self.companions, key=lambda c: c.key):
            digest.update(f"{companion.path} {companion.part}".encode())
            _update(digest, companion.array)
        return digest.hexdigest()

    def module(self, path: str) -> LoraModule:
        """The module at `path`; `KeyError` names the nearest paths if there is none."""
        for module in self.modules:
            if module.path == path:
                return module
        tail = path.rsplit(".", 1)[-1]
        near = [m.path for m in self.modules if m.path.endswith(tail)][:3]
        raise KeyError(f"{self.origin}: no module {path!r}; nearest: {', '.join(near) or 'none'}")


def alike(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The same updates in the same modules at the same ranks, so that one program serves all.

    Args:
        adapters: resolved against the same base model.

    Returns:
        As many adapters. Each has the modules of all, in one order, and each module the largest of
        its ranks; zeros fill what an adapter has not.
    """
    largest: dict[str, LoraModule] = {}
    for module in (module for adapter in adapters for module in adapter.modules):
        if module.path not in largest or module.rank > largest[module.path].rank:
            largest[module.path] = module
    empty = {
        path: replace(m, down=np.zeros_like(m.down), up=np.zeros_like(m.up))
        for path, m in sorted(largest.items())
    }
    made = []
    for adapter in adapters:
        own = {m.path: m.padded(empty[m.path].rank) for m in adapter.modules}
        modules = tuple(own.get(path, module) for path, module in empty.items())
        made.append(replace(adapter, modules=modules))
    return made


def delta(adapter: Adapter, path: str) -> np.ndarray:
    """The dense update of one module, scale included: for tests and small matrices.

    Args:
        adapter: any adapter.
        path: module path, as in the adapter.

    Returns:
        float64, `(out, in)`, or `(out, in, kh, kw)` for a convolution.

    Raises:
        KeyError: when there is no such module.
    """
    module = adapter.module(path)
    down = module.down.reshape(module.rank, -1).astype(np.float64)
    up = module.up.reshape(-1, module.rank).astype(np.float64)
    return (module.scale * up @ down).reshape(up.shape[0], *module.down.shape[1:])


def _update(digest: Any, array: np.ndarray) -> None:
    digest.update(f"{array.dtype} {array.shape}".encode())
    # As bytes, and not copied: NumPy hands out no buffer of bfloat16.
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
