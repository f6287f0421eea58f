"""`prolora diff`."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prolora_jax.cli.console import Common, out

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

    When B was migrated from A (its report says so), each module is compared with the one that it
    came from, also where blocks have other numbers in the target.

    Args:
        a: first adapter file.
        b: second adapter file.
        base: base model of both; needed when the two files use different key conventions, and
            for --plot with kohya files.
        plot: PNG to write: cosine and norm ratio by block and role.
    """
    import msgspec

    from prolora_jax.adapters.comparison import compare
    from prolora_jax.cli import tables
    from prolora_jax.errors import Refusal, UsageError
    from prolora_jax.io.adapters.files import load_adapter
    from prolora_jax.io.base_models.checkpoint import load_base_model
    from prolora_jax.io.outputs.reports import read_report, report_path

    spec_a = spec_b = None if base is None else load_base_model(base).spec
    origins = None
    if base is None and report_path(b).is_file():
        report = read_report(b)
        if a.resolve() == Path(report["input"]["location"]):
            origins = {row["path"]: row["source_path"] for row in report["modules"]}
            spec_a = load_base_model(Path(report["source"]["location"])).spec
            spec_b = load_base_model(Path(report["target"]["location"])).spec
    first, second = load_adapter(a, spec_a), load_adapter(b, spec_b)
    found = compare(first, second, origins)
    if not found.modules:
        raise UsageError(
            f"{a} ({first.format}) and {b} ({second.format}) have no module in common; expected "
            "two adapters of one base model. Name it with --base when their keys differ.",
            code=Refusal.NO_MATCHING_MODULE,
        )
    if plot is not None:
        from prolora_jax.evaluation.pictures import Panel, block_map

        if first.is_flat:
            raise UsageError(
                "--plot needs --base for kohya files: their names do not say where a block ends",
                code=Refusal.BAD_OPTION,
            )
        cosine = {path: m.cosine for path, m in found.modules.items()}
        ratio = {path: m.energy and m.energy**0.5 for path, m in found.modules.items()}
        top = max([r for r in ratio.values() if r is not None], default=1.0)
        panels = Panel("cosine", cosine, -1.0), Panel("norm of B / norm of A", ratio, 0.0, top)
        block_map(panels, f"A: {a.name}   B: {b.name}", plot)
    if common.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        tables.show_comparison(out(), found)
        if plot is not None:
            out().print(f"Wrote {plot}")
    return 0
