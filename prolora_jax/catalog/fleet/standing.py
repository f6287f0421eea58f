"""How far a catalog is, in what little memory a driver has for each of many inputs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prolora_jax.catalog.fleet.inputs import Unit
from prolora_jax.catalog.fleet.receipts import Known, every_receipt
from prolora_jax.io.places.place import FilePlace


@dataclass(frozen=True)
class Standing:
    """What receipts say of a catalog's inputs.

    Attributes:
        rounds: of the receipts of inputs that have one, by their names.
        kept: receipts that a worker may need: of inputs that have something left to be done, and
            of those that are looked at with others.
    """

    rounds: Mapping[str, int]
    kept: Mapping[str, Known]

    def settles(self, unit: Unit) -> bool:
        """Whether nothing is left to be done for inputs of the catalog."""
        return all(
            one.name in self.rounds
            and (one.name not in self.kept or self.kept[one.name].receipt.settles(one))
            for one in unit
        )


def standing(out: FilePlace, units: Iterable[Unit]) -> Standing:
    """Read all receipts, and keep what has to be kept.

    Args:
        out: place of the outputs.
        units: of the whole catalog.

    Raises:
        UsageError: a receipt cannot be read.
        OutputError: the place does not answer.
    """
    inputs = {one.name: unit for unit in units for one in unit}
    rounds, kept = dict[str, int](), dict[str, Known]()
    for known in every_receipt(out):
        name, round_ = known.receipt.record.input, known.receipt.round
        # Of an input that is gone nothing has to be known.
        if name not in inputs or round_ <= rounds.get(name, -1):
            continue
        unit = inputs[name]
        (one,) = (one for one in unit if one.name == name)
        rounds[one.name] = round_
        if len(unit) > 1 or not known.receipt.settles(one):
            kept[one.name] = known
        else:
            kept.pop(one.name, None)
    return Standing(rounds, kept)
