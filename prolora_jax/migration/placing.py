"""Operators on the devices of this host: each module has one device, where its operators stay.

A pair of SDXL's size has 8 to 16 GB of operators. Spread over the modules, they fit four chips of
16 GB, and no module's products need another device. From batch to batch they stay where they are,
as long as a device has room for them.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

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
        device: of this host.
    """

    operators: ModuleOperators
    matrices: tuple[SideOperator, SideOperator]
    device: Device


class OperatorsOnDevices:
    """Where the operators of a pair are, for one run.

    Args:
        pair: source and target.
        options: of the run.
        devices: to spread the modules over; all of this host when None.
        budget: bytes of operators that stay on each device; `SHARE` of its memory when None, and
            of a CPU all, since there the pages of the store itself are used.
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
        size = sum(_size(side.operator) for side in operators)
        if modules not in self._given:
            # The one with the least to do: products cost what their operators weigh.
            self._given[modules] = min(self._devices, key=lambda device: self._load[device])
            self._load[self._given[modules]] += size
        device = self._given[modules]
        # Not `jnp.asarray`: on CPU, `device_put` takes the mapped pages of a stored operator as
        # they are, and 8 GB for a pair of SDXL's size are not copied.
        left, right = jax.device_put([side.operator for side in operators], device)
        placed = Placed(operators, (left, right), device)
        # What was placed first stays: each pass asks for all modules in the same order, so that
        # whatever made room would be asked for again just after it was dropped.
        if size <= self._left[device]:
            self._left[device] -= size
            self._kept[modules] = placed
        return placed


def _size(operator: SideOperator) -> int:
    return operator.analysis.nbytes + sum(matrix.nbytes for matrix in operator.synthesis)


def _room(device: Device) -> int:
    if device.platform == "cpu":
        return 2**63
    return int(SHARE * (device.memory_stats() or {}).get("bytes_limit", 0))
