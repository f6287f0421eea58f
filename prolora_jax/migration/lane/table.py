"""What all files with one table of tensors share: modules, plan, places of their bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.detection import moved_to
from prolora_jax.adapters.formats.plain_scale import scale_strings
from prolora_jax.engines.progress import Progress
from prolora_jax.io.adapters.known_tables import Look, Traced, load_traced
from prolora_jax.migration.blocks import matrix_shape
from prolora_jax.migration.fitted import fit_to
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.projecting import out_dtype
from prolora_jax.migration.single import AdapterHeader, plan_fitted
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import BY_TOKEN, SLICED, Action, MigrationPlan, Skip

_DTYPES = frozenset({np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)})


class Irregular(Exception):
    """Raised when files with a table have to go the way of single files; says why."""


class Kind(NamedTuple):
    """Modules whose factors have one shape and dtype; they lie side by side."""

    out: int
    width: int
    rank: int
    dtype: str


class Trained(NamedTuple):
    """A module of the input.

    Attributes:
        module: of the table's first file; of its numbers nothing is used.
        kind: of its factors.
        place: its number among the modules of its kind that move, or among those that do not.
        moves: whether a step of the plan needs it.
        alpha: key of the tensor that says its scale; None where none does.
    """

    module: LoraModule
    kind: Kind
    place: int
    moves: bool
    alpha: str | None


class Piece(NamedTuple):
    """A tensor of the file: which module's, which side (`alpha`, too), and its bytes."""

    number: int
    side: str
    size: int


class Hashed(NamedTuple):
    """What `Adapter.fingerprint` takes of a module: its bytes are pieces of the file.

    Attributes:
        number: of the module.
        path: its path.
        factors: of `down` and `up`: dtype and shape as text, and the piece's number.
    """

    number: int
    path: str
    factors: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True)
class Table:
    """One table of tensors under the options of a run.

    Attributes:
        key: of all that decides the rest (`key_of`).
        header: of the first file.
        plan: for every file.
        modules: of the input, in its order.
        pieces: the tensors in the order of the file.
        alphas: dtype of the tensors that say scales; None where there are none.
        fixed: bytes of these tensors where another text says the scale, too: then they are part of
            what decides the plan; None where each file may have its own.
        sizes: by kind: how many modules move, and how many do not.
    """

    key: str
    header: AdapterHeader
    plan: MigrationPlan
    modules: tuple[Trained, ...]
    pieces: tuple[Piece, ...]
    alphas: np.dtype | None
    fixed: bytes | None
    sizes: Mapping[Kind, tuple[int, int]]

    @cached_property
    def by_path(self) -> Mapping[str, int]:
        """Numbers of the modules, in the order of their paths."""
        return {t.module.path: i for i, t in sorted(enumerate(self.modules), key=_path)}

    @cached_property
    def hashed(self) -> Sequence[Hashed]:
        """The modules in the order in which they are hashed."""
        places = {(number, side): i for i, (number, side, _) in enumerate(self.pieces)}
        found = []
        for path, number in self.by_path.items():
            module = self.modules[number].module
            factors = (("down", module.down), ("up", module.up))
            told = ((f"{a.dtype} {a.shape}".encode(), places[number, s]) for s, a in factors)
            found.append(Hashed(number, path, tuple(told)))
        return found

    @cached_property
    def ranks(self) -> np.ndarray:
        """Of the modules."""
        return np.array([trained.kind.rank for trained in self.modules])


def _path(numbered: tuple[int, Trained]) -> str:
    return numbered[1].module.path


def key_of(look: Look) -> str:
    """A digest of all in a file's beginning that its plan may depend on."""
    moved = moved_to(look.metadata)
    said = look.table, look.config, scale_strings(look.metadata), str(moved)
    return sha256("\0".join(said).encode(errors="replace")).hexdigest()


def table_of(
    path: Path,
    look: Look,
    pair: BasePair,
    options: MigrationOptions,
    progress: Progress | None = None,
) -> Table:
    """Work out a table with one of its files.

    Args:
        path: the file.
        look: at it.
        pair: source and target.
        options: of the run.
        progress: called while bases are computed and compared.

    Raises:
        Irregular: files with it go the way of single files.
        ProloraError: this file cannot be migrated.
    """
    traced = load_traced(path, options.alpha_zero)
    if not _is_plain(traced.adapter):
        raise Irregular("more than pairs of factors")
    fitted = fit_to(pair.source, traced.adapter, options)
    plan = plan_fitted(fitted, pair, options, progress)
    if any(skipped.reason is Skip.ZERO_DELTA for skipped in plan.skipped) or plan.companions:
        raise Irregular("the first file has a module without an update")
    if any({BY_TOKEN, SLICED} & {*step.flags} for step in plan.steps):
        raise Irregular("rows that go to other places")
    moving = _moving(plan)
    keys = {_address(array): key for key, array in traced.tensors.items() if array.size > 1}
    scales = _alpha_keys(traced, fitted.adapter)
    numbers: dict[tuple[Kind, bool], int] = {}
    modules = []
    for module in fitted.adapter.modules:
        kind, moves = _kind(module), module.path in moving
        place = numbers.get((kind, moves), 0)
        numbers[kind, moves] = place + 1
        modules.append(Trained(module, kind, place, moves, scales.get(module.path)))
        if moves and not _stays_as_it_is(module, plan, options):
            raise Irregular("numbers of another dtype or rank")
    pieces = _pieces(traced, keys, modules)
    dtypes = {traced.tensors[t.alpha].dtype for t in modules if t.alpha is not None}
    if len(dtypes) > 1:
        raise Irregular("scales of several dtypes")
    alphas = dtypes.pop() if dtypes else None
    fixed = None
    if alphas is not None and scale_strings(look.metadata):
        in_order = [modules[p.number].alpha for p in pieces if p.side == "alpha"]
        fixed = b"".join(traced.tensors[key].tobytes() for key in in_order if key is not None)
    kinds = {kind for kind, _ in numbers}
    sizes = {kind: (numbers.get((kind, True), 0), numbers.get((kind, False), 0)) for kind in kinds}
    header = AdapterHeader.of(fitted.adapter)
    # The first file's numbers are let go.
    light = tuple(trained._replace(module=_bare(trained.module)) for trained in modules)
    return Table(key_of(look), header, plan, light, pieces, alphas, fixed, sizes)


def _is_plain(adapter: Adapter) -> bool:
    beside = adapter.companions or adapter.structured or adapter.extras or adapter.read_as
    return not beside and all(module.made_from is None for module in adapter.modules)


def _moving(plan: MigrationPlan) -> frozenset[str]:
    copied = {s.source_path for s in plan.steps if s.action is Action.COPY}
    projected = {s.source_path for s in plan.steps if s.action is not Action.COPY}
    if copied & projected:
        raise Irregular("a module is both copied and projected")
    return frozenset(copied | projected)


def _stays_as_it_is(module: LoraModule, plan: MigrationPlan, options: MigrationOptions) -> bool:
    """Whether copies of a module are the file's own numbers, but for their scale."""
    for step in plan.steps:
        if step.source_path != module.path or step.action is not Action.COPY:
            continue
        own = options.options_for(step.path)
        same = out_dtype(module, own) == module.dtype and own.scale == 1.0
        if not (
            same and own.rescale == "none" and own.output_rank.is_met_by(module.rank, module.rank)
        ):
            return False
    return True


def _kind(module: LoraModule) -> Kind:
    dtypes = {module.up.dtype, module.down.dtype}
    if len(dtypes) > 1 or not dtypes <= _DTYPES:
        raise Irregular("factors of other dtypes")
    return Kind(*matrix_shape(module), module.rank, module.dtype.name)


def _alpha_keys(traced: Traced, fitted: Adapter) -> dict[str, str]:
    """Which tensor says the scale of a module, by the module's path in the base model."""
    known = {_address(module.down): module.path for module in fitted.modules}
    stems = {key.rpartition(".")[0]: key for key, a in traced.tensors.items() if a.size == 1}
    found = {}
    for key, array in traced.tensors.items():
        path = known.get(_address(array)) if array.size > 1 else None
        stem = key
        while path is not None and stem:
            stem = stem.rpartition(".")[0]
            if stem in stems:
                found[path] = stems.pop(stem)
                break
    if stems:
        raise Irregular("a number that is no module's scale")
    return found


def _pieces(
    traced: Traced, keys: Mapping[int, str], modules: Sequence[Trained]
) -> tuple[Piece, ...]:
    owners: dict[str, tuple[int, str]] = {}
    for number, trained in enumerate(modules):
        for side in ("down", "up"):
            array = getattr(trained.module, side)
            key = keys.get(_address(array))
            if key is None or not array.flags.c_contiguous or array.nbytes != _size(traced, key):
                raise Irregular("factors that are not in the file as they are used")
            owners[key] = number, side
        if trained.alpha is not None:
            value = float(traced.tensors[trained.alpha].reshape(()))
            if trained.module.alpha != value:
                raise Irregular("a scale that its tensor does not say")
            owners[trained.alpha] = number, "alpha"
    if owners.keys() != traced.entries.keys():
        raise Irregular("tensors that belong to no pair")
    ordered = sorted(traced.entries, key=lambda key: traced.entries[key].start)
    return tuple(Piece(*owners[key], _size(traced, key)) for key in ordered)


def _size(traced: Traced, key: str) -> int:
    return traced.entries[key].end - traced.entries[key].start


def _address(array: np.ndarray) -> int:
    return array.ctypes.data


def _bare(module: LoraModule) -> LoraModule:
    """A module with the shapes and dtypes of another one, that holds no memory."""
    return replace(
        module,
        up=np.broadcast_to(np.ones((), module.up.dtype), module.up.shape),
        down=np.broadcast_to(np.ones((), module.down.dtype), module.down.shape),
    )
