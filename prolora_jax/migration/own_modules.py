"""Modules of LoHa and LoKr that nothing changes: written as they are, as `--format same` asks."""

import numpy as np

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.adapters.formats.own_keys import HOLD_OWN
from prolora_jax.method.encoding import HostFactors
from prolora_jax.plans.options import MigrationOptions


def holds_own(format: str, asked: str, options: MigrationOptions) -> bool:
    """Whether an output may have modules that are written as they are.

    Args:
        format: of the input.
        asked: of the output, as the user has said it.
        options: of the migration.
    """
    return asked == "same" and format in HOLD_OWN and not options.uniform_rank


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
