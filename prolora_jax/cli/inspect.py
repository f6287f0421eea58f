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
    alpha_zero: AlphaZero = "refuse",
    allow_pickle: Annotated[bool, Parameter(negative="")] = False,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """What an adapter file is: format, ranks, modules, or why it would be refused.

    Args:
        paths: adapter files.
        source: base model it was trained on; then every module is checked against it.
        alpha_zero: what an alpha of 0 means: the file is refused, alpha = rank, or no effect.
        allow_pickle: read pickles, too (.pt .bin .ckpt .pth); needs torch, runs it apart.
    """
    from prolora_jax.adapters.inspection import refused
    from prolora_jax.cli import tables
    from prolora_jax.errors import ProloraError, Refusal, UsageError
    from prolora_jax.io.adapters.whole_files import inspect_file
    from prolora_jax.io.base_models.checkpoint import load_base_model

    if not paths:
        raise UsageError("inspect needs at least one file", code=Refusal.BAD_OPTION)
    base = None if source is None else load_base_model(source).spec
    found, worst = [], 0
    for path in paths:
        try:
            how = {"alpha_zero": alpha_zero, "allow_pickle": allow_pickle}
            found.append(inspect_file(path, base, **how))
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
