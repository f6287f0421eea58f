"""`prolora inspect`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prolora_jax.adapters.adapter import AlphaZero
from prolora_jax.cli.console import Common, out, show_error, write_json

COMMON = Common()


def inspect(
    *paths: Path,
    source: Path | None = None,
    assume_base: str | None = None,
    alpha_zero: AlphaZero = "refuse",
    allow_pickle: Annotated[bool, Parameter(negative="")] = False,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """What an adapter file is: format, ranks, modules, or why it would be refused.

    Of a base model's folder or file it says what that is: architecture or family, stacks or layers,
    width, naming and packing.

    Args:
        paths: adapter files.
        source: base model it was trained on; then it is checked against that as migrate does.
        assume_base: with --source: id of the base model (sdxl, ssd-1b, ...) to believe in,
            whatever the file says.
        alpha_zero: what an alpha of 0 means: the file is refused, alpha = rank, or no effect.
        allow_pickle: read pickles, too (.pt .bin .ckpt .pth); needs torch, runs it apart.
    """
    from prolora_jax.adapters.inspection import refused
    from prolora_jax.cli import tables
    from prolora_jax.errors import ProloraError, Refusal, UsageError
    from prolora_jax.io.adapters.whole_files import inspect_file
    from prolora_jax.io.base_models.checkpoint import load_base_model
    from prolora_jax.plans.options import MigrationOptions

    if not paths:
        raise UsageError("inspect needs at least one file", code=Refusal.BAD_OPTION)
    if assume_base is not None and source is None:
        raise UsageError("--assume-base needs --source BASE", code=Refusal.BAD_OPTION)
    MigrationOptions(assume_base=assume_base)  # refuses an id that there is not
    base = None if source is None else load_base_model(source).spec
    found, worst = [], 0
    for path in paths:
        try:
            how = {"alpha_zero": alpha_zero, "allow_pickle": allow_pickle}
            found.append(inspect_file(path, base, assume_base, **how))
        except ProloraError as error:
            worst = max(worst, error.exit_code)
            found.append(refused(str(path), error))
            show_error(str(error))
    if common.json:
        write_json({"files": found})
    else:
        for inspection in found:
            tables.show_inspection(out(), inspection)
    return worst
