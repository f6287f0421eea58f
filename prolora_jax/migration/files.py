"""One adapter file: read and fitted to the source; written for the target, with its report."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.fitting import Fitted
from prolora_jax.adapters.formats.dumping import SAME, Reader, concrete_format, require_room
from prolora_jax.adapters.formats.keys import TREE_FORMATS
from prolora_jax.adapters.formats.original_layers import grown_ranks
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.io.adapters.files import (
    load_adapter,
    refuse_existing,
    require_folder,
    save_adapter,
    writes_folder,
)
from prolora_jax.io.adapters.license_check import require_license
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.io.outputs.catalog_files import remove_output
from prolora_jax.io.outputs.reports import report_path, write_report
from prolora_jax.migration.fitted import fit_to
from prolora_jax.plans.folder_report import FileReport
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import MigrationPlan
from prolora_jax.plans.report import MigrationReport


class Writing(NamedTuple):
    """How files are read and written.

    Attributes:
        format: one of `formats.FORMATS`, `kohya`, or `same`: as the input, also where a module of
            LoHa or LoKr is copied; `lora`: as the input, LoRA factors for every module.
        strip_metadata: whether header strings are left out.
        overwrite: whether outputs that are there may be replaced.
        allow_pickle: whether pickles are read.
        sidecars: whether files beside an adapter go with its output.
        ignore_license: whether adapters are migrated whose licence forbids derivatives.
        pair: digest of the folder's `pair.report.json`: reports refer to it, and hold totals;
            None for whole reports.
        reader: the program that outputs are for, where it reads less than peft: folders, in
            format `peft`.
    """

    format: str = "same"
    strip_metadata: bool = False
    overwrite: bool = False
    allow_pickle: bool = False
    sidecars: bool = False
    ignore_license: bool = False
    pair: str | None = None
    reader: Reader | None = None


def refuse_outputs(
    source: Path, output: Path, writing: Writing, read: Iterable[str | Path] = ()
) -> None:
    """Check that an output and its report may be written, before any work is done for them.

    Args:
        source: the input, whose kind the format `same` keeps.
        output: where the migrated adapter goes.
        writing: its format, and whether what is there may be replaced.
        read: files and folders that the output is made from, which it never replaces.

    Raises:
        UsageError: they may not.
    """
    same = source.is_dir() and writing.format in SAME
    require_folder(output, "peft" if same else writing.format, writing.reader)
    folder = writes_folder(output, "peft" if same else writing.format)
    read = tuple(read)
    tree = not same and writing.format in TREE_FORMATS
    refuse_existing(output, writing.overwrite, folder=folder, tree=tree, read=read)
    refuse_existing(report_path(output), writing.overwrite, read=read)


def read_fitted(
    path: Path,
    source: BaseModel,
    options: MigrationOptions,
    writing: Writing,
    *,
    licence_seen: bool = False,
    folder: bool = False,
) -> Fitted:
    """Read an adapter that may be migrated, and hold it against the source.

    Args:
        path: the file or folder.
        source: base model it was trained on.
        options: what an alpha of 0 means, and which base model to believe in.
        writing: what may be read.
        licence_seen: whether its licence was looked at before, as the scan of a catalog does for
            all files of a folder together.
        folder: whether input and output are folders as peft writes them.

    Returns:
        The adapter with its paths in the source.

    Raises:
        ProloraError: it cannot be read, or may not be migrated, or is not the source's.
    """
    adapter = load_adapter(
        path.resolve(),  # reports name it, and are read from other folders
        alpha_zero=options.alpha_zero,
        allow_pickle=writing.allow_pickle,
        quiet=writing.pair is not None,
        structured=True,
    )
    if not (licence_seen or writing.ignore_license):
        require_license(path, adapter.metadata)
    return fit_to(source, adapter, options, writing.format, folder=folder)


def require_room_for(
    adapter: Adapter, plan: MigrationPlan, target: BaseModelSpec, writing: Writing, output: Path
) -> None:
    """Check that an output has a place for what comes along beside its pairs, before any is moved.

    Args:
        adapter: fitted to the source.
        plan: what becomes of it.
        target: base model it moves to.
        writing: the output's format and reader.
        output: where it is written.

    Raises:
        AdapterRefused: it has none.
    """
    kept = {c.key for c in plan.companions if c.path is not None}
    if not kept:
        return
    beside = tuple(c for c in adapter.companions if c.key in kept)
    format = concrete_format(writing.format, adapter, target)
    folded = format == "peft" and not writes_folder(output, format)
    moving = replace(adapter, companions=beside)
    require_room(moving, format, folded=folded, reader=writing.reader)


def as_written(
    adapter: Adapter, report: MigrationReport, target: BaseModelSpec, writing: Writing
) -> MigrationReport:
    """A report with what the output's format makes of the adapter.

    Args:
        adapter: as `encode` made it.
        report: what was done.
        target: base model it is for.
        writing: its format.

    Returns:
        The report, flagged where fused layers get the ranks of several parts.
    """
    format = concrete_format(writing.format, adapter, target)
    grown = grown_ranks(adapter, format, target)
    return replace(report, flags=(*report.flags, *grown)) if grown else report


def write_migrated(
    adapter: Adapter,
    report: MigrationReport | FileReport,
    output: Path,
    target: BaseModelSpec,
    writing: Writing,
) -> Path:
    """Write a migrated adapter, and its report beside it.

    Args:
        adapter: as `encode` made it.
        report: what was done.
        output: where it goes.
        target: base model it is for.
        writing: its format, and whether what is there may be replaced.

    Returns:
        Where the report is.

    Raises:
        ProloraError: they cannot be written.
    """
    save_adapter(
        adapter,
        output,
        format=concrete_format(writing.format, adapter, target),
        base=target,
        strip_metadata=writing.strip_metadata,
        overwrite=writing.overwrite,
        reader=writing.reader,
    )
    return write_report(output, report)


def clear_folder(output: Path) -> None:
    """Take an earlier output away that is a folder: a folder that is new appears whole."""
    if output.is_dir():
        remove_output(output)
