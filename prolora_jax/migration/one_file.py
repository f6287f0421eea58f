"""The whole job for one output: an adapter file, or several merged, from base to base, on disk."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.combination import combine
from prolora_jax.adapters.fitting import Fitted, fit
from prolora_jax.adapters.formats.original_layers import cut_alike
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.adapters.files import writes_folder
from prolora_jax.io.adapters.peft_folder import is_adapter_folder
from prolora_jax.io.adapters.sidecars import Folders, carry
from prolora_jax.io.outputs.reports import read_plan
from prolora_jax.migration.files import (
    Writing,
    as_written,
    read_fitted,
    refuse_outputs,
    require_room_for,
    write_migrated,
)
from prolora_jax.migration.merged import parts_of, widest
from prolora_jax.migration.opening import Place, location_of, open_pair
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import plan_fitted, run_plan
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import MigrationPlan
from prolora_jax.plans.report import MigrationReport
from prolora_jax.plans.reuse import check_plan, require_same_decisions
from prolora_jax.subspaces.store import BasisStore


class MigratedFile(NamedTuple):
    """An adapter that was migrated, on the disk.

    Attributes:
        output: the adapter.
        report: what was done.
        report_file: where the report stands.
    """

    output: Path
    report: MigrationReport
    report_file: Path


def is_one(inputs: Sequence[Path]) -> bool:
    """Whether the inputs are one adapter: a file, or a folder that peft wrote."""
    return len(inputs) == 1 and (not inputs[0].is_dir() or is_adapter_folder(inputs[0]))


def plan_file(
    inputs: str | Path | Sequence[str | Path],
    source: Place,
    target: Place,
    options: MigrationOptions | None = None,
    writing: Writing | None = None,
    *,
    merge: bool = False,
    weights: Sequence[float] = (),
    plan: Path | None = None,
    store: BasisStore | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> MigrationPlan:
    """What `migrate_file` would do; nothing is projected or written.

    Args:
        inputs: as for `migrate_file`, and so are all others.
        source: base model the adapter was trained on.
        target: base model it moves to.
        options: of the migration.
        writing: what may be read.
        merge: whether the inputs are added up.
        weights: of the inputs of a merge.
        plan: a plan that is to be followed: it is checked.
        store: where subspaces are found and kept.
        workers: processes for what has to be computed.
        progress: called with (what, done, total).

    Returns:
        The plan.

    Raises:
        ProloraError: what `migrate_file` would raise before it writes.
    """
    paths = _paths(inputs, merge)
    fused = "parts" if options is None else options.fused
    pair = open_pair(source, target, store, workers, fused)
    folder = paths[0].is_dir()
    given = _read(paths, pair, options, writing or Writing(), weights if merge else None, folder)
    return _planned(given, pair, plan, progress)


def migrate_file(
    inputs: str | Path | Sequence[str | Path],
    source: Place,
    target: Place,
    out: str | Path,
    options: MigrationOptions | None = None,
    writing: Writing | None = None,
    *,
    merge: bool = False,
    weights: Sequence[float] = (),
    plan: Path | None = None,
    store: BasisStore | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> MigratedFile:
    """Migrate an adapter file to a file, with its report and what else goes with it.

    Args:
        inputs: an adapter file, or a folder that peft wrote; of a merge one or more.
        source: base model the adapter was trained on, or where it lies.
        target: base model it moves to, or where it lies.
        out: file (or folder) to write.
        options: of the migration; default options when None.
        writing: the output's format, and what may be read and replaced.
        merge: write one adapter, the sum of the inputs.
        weights: of the inputs of a merge, in their order; 1 for all when empty.
        plan: a plan to follow, as a dry run printed it.
        store: where subspaces are found and kept; memory when None.
        workers: processes for what has to be computed.
        progress: called with (what, done, total).

    Returns:
        Where the output and its report are, and the report.

    Raises:
        UsageError: the output exists, an input or a base model is not there, or the plan is for
            another job.
        AdapterRefused: an input cannot be migrated, or its licence forbids it.
        BaseModelError: a base model cannot be used.
        OutputError: the output cannot be written.
    """
    paths, out, writing = _paths(inputs, merge), Path(out), writing or Writing()
    places = (location_of(source), location_of(target))
    refuse_outputs(paths[0], out, writing, read=(*paths, *places))
    fused = "parts" if options is None else options.fused
    pair = open_pair(source, target, store, workers, fused)
    folder = paths[0].is_dir() and writes_folder(out, "peft")
    given = _read(paths, pair, options, writing, weights if merge else None, folder)
    todo = _planned(given, pair, plan, progress)
    require_room_for(given.fitted.adapter, todo, pair.target.spec, writing, out)
    migrated, report = run_plan(given.fitted.adapter, pair, todo, progress)
    if merge:
        report = replace(report, parts=parts_of(given.parts, weights))
    report = as_written(migrated, report, pair.target.spec, writing)
    report_file = write_migrated(migrated, report, out, pair.target.spec, writing)
    if writing.sidecars:
        note = {"source": pair.source.spec.name, "target": pair.target.spec.name}
        for path in paths:
            carry(Folders().of(path), out, {"migrated_from": path.name} | note)
    return MigratedFile(out, report, report_file)


class _Given(NamedTuple):
    """What is to be migrated, and the adapters that it is made of."""

    fitted: Fitted
    parts: list[Adapter]
    options: MigrationOptions


def _paths(inputs: str | Path | Sequence[str | Path], merge: bool) -> list[Path]:
    paths = [Path(p) for p in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    if not paths or (len(paths) > 1 and not merge):
        raise UsageError(
            f"migrate_file: found {len(paths)} adapters; expected one, or merge=True; for the "
            "adapters of a folder, each by itself, use run_catalog",
            code=Refusal.BAD_OPTION,
        )
    return paths


def _read(
    paths: Sequence[Path],
    pair: BasePair,
    options: MigrationOptions | None,
    writing: Writing,
    weights: Sequence[float] | None,
    folder: bool,  # noqa: FBT001 (all of them are given)
) -> _Given:
    """The adapter that is to be migrated; with weights it is the sum of the inputs."""
    options, spec = options or MigrationOptions(), pair.source.spec
    folder = folder and weights is None
    given = [read_fitted(path, pair.source, options, writing, folder=folder) for path in paths]
    parts = [fitted.adapter for fitted in given]
    if weights is None:
        return _Given(given[0], parts, options)
    # All parts together may say which base model they are for where each leaves a choice.
    merged = fit(combine(cut_alike(parts, spec), weights), spec, options.assume_base)
    return _Given(merged, parts, widest(options, parts))


def _planned(
    given: _Given, pair: BasePair, plan: Path | None, progress: Progress | None
) -> MigrationPlan:
    """A new plan, or the one that is to be followed."""
    if plan is None:
        return plan_fitted(given.fitted, pair, given.options, progress)
    known = read_plan(plan)
    check_plan(known, given.fitted.adapter, pair.source.spec, pair.target.spec, given.options)
    # What was made of these files is run: a report has numbers of theirs, not of a document.
    made = plan_fitted(given.fitted, pair, known.options, progress)
    require_same_decisions(known, made)
    return made
