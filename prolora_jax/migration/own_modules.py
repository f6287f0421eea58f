"""Modules of LoHa and LoKr that nothing changes: written as they are, as `--format same` asks."""

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.algorithms.table import WRITTEN
from prolora_jax.adapters.formats.own_keys import HOLD_OWN
from prolora_jax.method.encoding import HostFactors
from prolora_jax.plans.options import MigrationOptions


def holds_own(
    adapter: Adapter, asked: str, options: MigrationOptions, *, folder: bool = False
) -> bool:
    """Whether an output may have modules that are written as they are.

    Args:
        adapter: the input, as read.
        asked: format of the output, as the user has said it.
        options: of the migration.
        folder: whether input and output are folders as peft writes them.
    """
    if asked != "same" or options.uniform_rank:
        return False
    if adapter.format in HOLD_OWN:
        return True
    # A folder of peft's holds modules of one kind alone: all are written as they are, or none.
    own = [module for module in adapter.structured if module.algorithm in WRITTEN]
    whole = all(module.settings and module.alpha for module in own)
    return folder and adapter.format == "peft" and options.copies_as_is and whole


def stays(module: LoraModule, options: MigrationOptions) -> bool:
    """Whether a module that is copied is written as it is: no option asks for other numbers.

    An alpha of 0, on whose meaning programs do not agree, is not written again.

    Args:
        module: of the input.
        options: for it.
    """
    own = None if module.made_from is None else module.made_from.own
    return own is not None and own.alpha != 0.0 and options.keeps_numbers


def unwritten(module: LoraModule) -> HostFactors:
    """Stand-ins for factors that nobody writes; they take no memory, and are no numbers."""
    (out, *rest), rank = module.weight_shape, module.rank
    nothing = np.float32(np.nan)
    up, down = ((out, rank), (rank, int(np.prod(rest))))
    return HostFactors(np.broadcast_to(nothing, down), np.broadcast_to(nothing, up))
