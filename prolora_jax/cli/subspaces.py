"""`prolora subspaces build | list | prune`."""

import math
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from prolora_jax.cli.console import Common, Reporter, out, write_json

COMMON = Common()
subspaces = App(name="subspaces", help_format="plaintext")


@subspaces.command
def build(
    *models: Path,
    modules: Literal["attn", "linear", "all"] = "attn",
    basis_rank: str = "energy=0.95",
    for_pair: Annotated[bool, Parameter(negative="")] = False,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Compute and store the subspaces of base models ahead of time.

    What is stored already is not computed again; a run that was killed goes on where it was.

    Args:
        models: base models.
        modules: attn: attention layers; linear: all linear layers; all: convolutions, too.
        basis_rank: how many columns to keep at least: energy=0.95, rank=320, fraction=0.5.
        for_pair: two models, source and target of a migration: only the modules of both that
            it can use, by the default matching.
    """
    from prolora_jax.errors import Refusal, UsageError
    from prolora_jax.migration.ahead import build_subspaces

    if not models:
        raise UsageError("subspaces build needs at least one base model", code=Refusal.BAD_OPTION)
    store, reporter = common.basis_store(), Reporter(common.quiet)
    how = {"for_pair": for_pair, "workers": common.processes, "progress": reporter}
    built = build_subspaces(models, store, modules, basis_rank, **how)
    results = []
    for location in models:
        with reporter.shown():
            done = next(built)
        results.append(done._asdict())
        if not common.json:
            found = done.modules - done.computed
            out().print(f"{location}: {done.computed} subspaces computed, {found} already stored")
    if common.json:
        write_json({"store": store.address.shown, "models": results})
    return 0


@subspaces.command(name="list")
def list_(*, common: Annotated[Common, Parameter(name="*")] = COMMON) -> int:
    """What the store holds: subspaces by shape, operators by arm and shape, comparisons.

    Operators and comparisons are what is computed from two bases; each serves every adapter that
    is moved between these weights.
    """
    from prolora_jax.cli import store_tables

    store = common.local_store()
    if common.json:
        write_json(store_tables.store_document(store))
    else:
        store_tables.show_store(out(), store)
    return 0


@subspaces.command
def prune(
    *,
    keep: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    older_than: float | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Delete what the store does not need: damaged files, leftovers of killed runs, old versions.

    Whole subspaces, operators and comparisons are deleted only with --keep or --older-than. With
    both, either is enough to stay.

    Args:
        keep: base models; what belongs to other weights goes. Operators and comparisons belong to
            a source and a target, and stay when both are kept.
        older_than: days; what was not used for so long goes. A use is noted once a day.
        dry_run: only say what would be deleted.
    """
    from prolora_jax.errors import Refusal, UsageError
    from prolora_jax.migration.opening import open_base_model

    if older_than is not None and not 0.0 <= older_than < math.inf:
        raise UsageError(
            f"--older-than {older_than}: expected a number of days, 0 or more",
            code=Refusal.BAD_OPTION,
        )
    store = common.local_store()
    wanted = None
    if keep:
        models = [open_base_model(location, store) for location in keep]
        wanted = {p for m in models for p in m.fingerprints(m.spec.modules).values()}
    files, size = store.prune(wanted, older_than, dry_run=dry_run)
    if common.json:
        document = {"store": str(store.folder), "files": files, "bytes": size, "dry_run": dry_run}
        write_json(document)
    else:
        verb = "Would delete" if dry_run else "Deleted"
        what = f"{files} files of subspaces, operators and comparisons, {size / 1e6:.1f} MB"
        out().print(f"{verb} {what}, in {store.folder}")
    return 0
