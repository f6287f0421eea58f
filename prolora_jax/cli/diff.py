"""`prolora diff`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prolora_jax.cli.console import Common, out, write_json

COMMON = Common()


def diff(
    a: Path,
    b: Path,
    *,
    base: Path | None = None,
    plot: Path | None = None,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Two adapters module by module: norms, cosine, retained energy.

    Compared is what each adds to the weights, whatever its algorithm. When B was migrated from A
    (its report says so), each module is compared with the one that it came from, also where blocks
    have other numbers in the target.

    Args:
        a: first adapter file.
        b: second adapter file.
        base: base model of both; needed when the two files use different key conventions, for
            --plot with kohya files, for DoRA, OFT, IA3 and GLoRA, whose updates depend on its
            weights, and where rows of q and k are in llama.cpp's or MaxText's order.
        plot: PNG to write: cosine and norm ratio by block and role.
    """
    from prolora_jax.cli import tables
    from prolora_jax.io.adapters.whole_files import compare_files

    found = compare_files(a, b, base)
    if plot is not None:
        from prolora_jax.evaluation.pictures import comparison_map

        comparison_map(found, f"A: {a.name}   B: {b.name}", plot)
    if common.json:
        write_json(found.comparison)
    else:
        tables.show_comparison(out(), found.comparison)
        if plot is not None:
            out().print(f"Wrote {plot}")
    return 0
