"""Operators on the devices of this host: each module has one device, where its operators stay.

A pair of SDXL's size has 8 to 16 GB of operators. Spread over the modules, they fit four chips of
16 GB, and no module's products need another device. From batch to batch they stay where they are,
as long as a device has room for them.

A side that is larger than what one device may hold is cut along its axis, and every device gets
some rows of it: of `analysis`, and the columns of `synthesis` that belong to the same places. Each
device measures its own places of a block, and the measurements are summed over the devices: that is
the one thing they send each other in the products. What comes of it stays cut. The module's other
side is on all of these devices, whole if it fits.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prolora_jax.engines.progress import Progress
from prolora_jax.matching.pairs import ModulePair
from prolora_jax.method.operators import ModuleOperators, SideOperator
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions

Device = Any
"""`jax.Device`, which is a variable to type checkers."""

AHEAD = 2
"""Modules whose operators are asked for before their turn."""

SHARE = 0.6
"""Of a device's memory that operators may fill; the rest is for blocks and results."""


class Placed(NamedTuple):
    """A module's operators on a device.

    Attributes:
        operators: as they are stored; their forms.
        matrices: of both sides, on `device`.
        device: of this host, where blocks go, too; or several, each of which gets the block whole.
    """

    operators: ModuleOperators
    matrices: tuple[SideOperator, SideOperator]
    device: Device | NamedSharding


class OperatorsOnDevices:
    """Where the operators of a pair are, for one run.

    Args:
        pair: source and target.
        options: of the run.
        devices: to spread the modules over; all of this host when None.
        budget: bytes of operators that each device may hold: so much stays there, and a larger
            side is cut; `SHARE` of its memory when None, and of a CPU all, since there the pages of
            the store itself are used.
    """

    def __init__(
        self,
        pair: BasePair,
        options: MigrationOptions,
        devices: Sequence[Device] | None = None,
        budget: int | None = None,
    ):
        self._pair, self._options = pair, options
        self._devices = list(jax.local_devices() if devices is None else devices)
        self._left = {d: _room(d) if budget is None else budget for d in self._devices}
        self._most = min(self._left.values())
        self._load = dict.fromkeys(self._devices, 0)
        self._given: dict[ModulePair, Device] = {}
        self._kept: dict[ModulePair, Placed] = {}

    @property
    def devices(self) -> int:
        """How many there are."""
        return len(self._devices)

    def prepare(self, wanted: Sequence[ModulePair], progress: Progress | None = None) -> None:
        """Have operators computed that are not stored yet, by worker processes, too."""
        self._pair.prepare_operators(wanted, self._options, progress)

    def each(self, wanted: Sequence[ModulePair]) -> Iterator[tuple[ModulePair, Placed]]:
        """Operators of each pair of modules, asked for early: a disk reads them meanwhile."""
        asked: deque[tuple[ModulePair, Placed]] = deque()
        for modules in wanted:
            asked.append((modules, self._placed(modules)))
            if len(asked) > AHEAD:
                yield asked.popleft()
        while asked:
            yield asked.popleft()

    def _placed(self, modules: ModulePair) -> Placed:
        if modules in self._kept:
            return self._kept[modules]
        operators = self._pair.operators(modules, self._options)
        mesh = self._mesh(operators)
        placed = (
            self._on_one(modules, operators) if mesh is None else _cut(operators, mesh, self._most)
        )
        # What was placed first stays: each pass asks for all modules in the same order, so that
        # whatever made room would be asked for again just after it was dropped.
        held = _held(placed.matrices)
        if all(size <= self._left[device] for device, size in held.items()):
            for device, size in held.items():
                self._left[device] -= size
            self._kept[modules] = placed
        return placed

    def _on_one(self, modules: ModulePair, operators: ModuleOperators) -> Placed:
        if modules not in self._given:
            # The one with the least to do: products cost what their operators weigh.
            self._given[modules] = min(self._devices, key=lambda device: self._load[device])
            self._load[self._given[modules]] += sum(_size(side.operator) for side in operators)
        device = self._given[modules]
        # Not `jnp.asarray`: on CPU, `device_put` takes the mapped pages of a stored operator as
        # they are, and 8 GB for a pair of SDXL's size are not copied.
        left, right = jax.device_put([side.operator for side in operators], device)
        return Placed(operators, (left, right), device)

    def _mesh(self, operators: ModuleOperators) -> Mesh | None:
        """The devices that have to share a module; None where one is enough, or all there is.

        So many of them that each gets as many rows as any other of each side that is cut.
        """
        axes = [len(side.operator.analysis) for side in operators if self._too_large(side.operator)]
        number = max(n for n in range(1, self.devices + 1) if not any(axis % n for axis in axes))
        return Mesh(np.array(self._devices[:number]), ("rows",)) if axes and number > 1 else None

    def _too_large(self, operator: SideOperator) -> bool:
        return _size(operator) > self._most


def _cut(operators: ModuleOperators, mesh: Mesh, most: int) -> Placed:
    """A module on several devices: sides with more bytes than `most` are cut, others are whole."""
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec("rows", None))
    columns = NamedSharding(mesh, PartitionSpec(None, "rows"))

    def placed(operator: SideOperator) -> SideOperator:
        if _size(operator) <= most:
            return jax.device_put(operator, whole)
        cut = tuple(jax.device_put(matrix, columns) for matrix in operator.synthesis)
        return SideOperator(jax.device_put(operator.analysis, rows), cut)

    left, right = operators
    return Placed(operators, (placed(left.operator), placed(right.operator)), whole)


def _held(matrices: tuple[SideOperator, SideOperator]) -> dict[Device, int]:
    """Bytes of a module on each device."""
    found: dict[Device, int] = {}
    for array in jax.tree.leaves(matrices):
        for shard in array.addressable_shards:
            found[shard.device] = found.get(shard.device, 0) + shard.data.nbytes
    return found


def _size(operator: SideOperator) -> int:
    return operator.analysis.nbytes + sum(matrix.nbytes for matrix in operator.synthesis)


def _room(device: Device) -> int:
    if device.platform == "cpu":
        return 2**63
    return int(SHARE * (device.memory_stats() or {}).get("bytes_limit", 0))
