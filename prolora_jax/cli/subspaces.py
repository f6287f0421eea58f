"""`prolora subspaces build | list | prune`."""

import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from prolora_jax.cli.console import Common, Reporter, absolute, out

if TYPE_CHECKING:
    from prolora_jax.io.base_models.checkpoint import BaseModel

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
    import msgspec

    from prolora_jax.errors import Refusal, UsageError
    from prolora_jax.io.base_models.checkpoint import load_base_model
    from prolora_jax.plans.options import basis_rule
    from prolora_jax.subspaces.compute import compute_subspaces

    if not models:
        raise UsageError("subspaces build needs at least one base model", code=Refusal.BAD_OPTION)
    if for_pair and len(models) != 2:
        raise UsageError(
            f"--for-pair: expected two base models, source and target; found {len(models)}",
            code=Refusal.BAD_OPTION,
        )
    rule = basis_rule(basis_rank)
    store = common.basis_store()
    reporter = Reporter(common.quiet)
    loaded = [load_base_model(absolute(location)) for location in models]
    usable = _usable(*loaded) if for_pair else [model.spec.modules for model in loaded]
    results = []
    for location, model, known in zip(models, loaded, usable, strict=True):
        paths = [path for path in known if model.spec.modules[path].kind_is(modules)]
        with reporter.shown():
            done = compute_subspaces(model, paths, store, rule, reporter, common.processes)
        results.append({"model": model.location, "modules": len(paths), "computed": done})
        if not common.json:
            found = len(paths) - done
            out().print(f"{location}: {done} bases computed, {found} were stored already")
    if common.json:
        document = {"store": str(store.folder), "models": results}
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    return 0


def _usable(source: "BaseModel", target: "BaseModel") -> tuple[Collection[str], Collection[str]]:
    """Modules of both models that a migration from one to the other can use."""
    from prolora_jax.migration.pair import BasePair

    pairs = BasePair(source, target).matching().pairs
    return dict.fromkeys(pairs.values()), pairs


@subspaces.command(name="list")
def list_(*, common: Annotated[Common, Parameter(name="*")] = COMMON) -> int:
    """What the store holds: bases by shape of the weight, operators by arm and shape, comparisons.

    Operators and comparisons are what is computed from two bases; each serves every adapter that
    is moved between these weights.
    """
    import msgspec

    from prolora_jax.cli import store_tables

    store = common.basis_store()
    if common.json:
        document = store_tables.store_document(store)
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
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

    Whole bases, operators and comparisons are deleted only with --keep or --older-than. With
    both, either is enough to stay.

    Args:
        keep: base models; what belongs to other weights goes. Operators and comparisons belong to
            a source and a target, and stay when both are kept.
        older_than: days; what was not used for so long goes. A use is noted once a day.
        dry_run: only say what would be deleted.
    """
    import msgspec

    from prolora_jax.errors import Refusal, UsageError
    from prolora_jax.io.base_models.checkpoint import load_base_model

    if older_than is not None and not 0.0 <= older_than < math.inf:
        raise UsageError(
            f"--older-than {older_than}: expected a number of days, 0 or more",
            code=Refusal.BAD_OPTION,
        )
    store = common.basis_store()
    wanted = None
    if keep:
        models = [load_base_model(absolute(location)) for location in keep]
        wanted = {model.fingerprint(path) for model in models for path in model.spec.modules}
    files, size = store.prune(wanted, older_than, dry_run=dry_run)
    if common.json:
        document = {"store": str(store.folder), "files": files, "bytes": size, "dry_run": dry_run}
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    else:
        verb = "Would delete" if dry_run else "Deleted"
        what = f"{files} files of bases, operators and comparisons, {size / 1e6:.1f} MB"
        out().print(f"{verb} {what}, in {store.folder}")
    return 0
