"""Types are checked while tests run: of arrays with their axes, and of everything else.

jaxtyping's checks bind the arguments of every call anew, which made two thirds of the time of all
tests. They are kept where functions name the axes of arrays; beartype alone, a hundred times
quicker, checks all other modules but commands: these import what they need when they run, so that
names in their annotations mean nothing before.
"""

from pathlib import Path

import jax
import numpy as np
from beartype import BeartypeConf, BeartypeDecorPlace, FrozenDict
from beartype.claw import beartype_package
from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parents[2] / "prolora_jax"
# Whole numbers will do where real ones are asked for (PEP 484).
_CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"


def check_types() -> None:
    """From here on, what is imported of the package is checked at every call."""
    checked = BeartypeConf(
        is_pep484_tower=True,
        claw_is_pep526=False,
        # Before any other decorator: what `jax.jit` makes of a function has more than a call.
        claw_decor_place_func=BeartypeDecorPlace.FIRST,
        # A named tuple of NumPy's arrays is made of JAX's while a program is traced.
        hint_overrides=FrozenDict({np.ndarray: np.ndarray | jax.Array}),
        claw_skip_package_names=(f"{PACKAGE.name}.cli",),
    )
    beartype_package(PACKAGE.name, conf=checked)
    install_import_hook(with_axes(), _CHECKER)


def with_axes() -> list[str]:
    """The modules of the package that name axes of arrays."""
    return [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for file in sorted(PACKAGE.rglob("*.py"))
        if "from jaxtyping import" in file.read_text(encoding="utf-8")
    ]
