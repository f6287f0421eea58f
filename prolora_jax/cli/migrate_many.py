"""`prolora migrate` with several inputs or a folder."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from prolora_jax.bulk import FileJob, Outcome, Writing, migrate_files
from prolora_jax.cli.console import Common, Reporter, absolute, out, printable
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.adapters import writes_folder
from prolora_jax.io.checkpoint import load_base_model
from prolora_jax.io.inputs import Input, expand
from prolora_jax.io.peft_folder import is_adapter_folder
from prolora_jax.options import MigrationOptions
from prolora_jax.pair import BasePair

MOST_REFUSED = 20
"""Refused files that the table names; the JSON has all of them."""


def is_one(inputs: Sequence[Path]) -> bool:
    """Whether the inputs are one adapter: a file, or a folder that peft wrote."""
    return len(inputs) == 1 and (not inputs[0].is_dir() or is_adapter_folder(inputs[0]))


def migrate_many(
    inputs: Sequence[Path],
    source: Path,
    target: Path,
    folder: Path,
    options: MigrationOptions,
    writing: Writing,
    fail_fast: bool,
    common: Common,
) -> int:
    """Migrate every adapter of the inputs into a folder; 1 when any was refused."""
    import msgspec

    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"{folder}: found a file; expected a folder for several outputs; choose another",
            code=Refusal.OUTPUT_EXISTS,
        )
    jobs = [FileJob(item.path, _output(folder, item, writing)) for item in expand(inputs)]
    if not jobs:
        raise UsageError(
            f"{inputs[0]}: found no adapter in it; expected .safetensors files or PEFT folders",
            code=Refusal.MISSING_FILE,
        )
    models = load_base_model(absolute(source)), load_base_model(absolute(target))
    pair = BasePair(*models, common.basis_store(), common.processes)
    reporter = Reporter(common.quiet)
    outcomes = []
    with reporter.shown():
        for outcome in migrate_files(jobs, pair, options, writing, reporter):
            # Reports are on the disk: thousands of them would fill the memory.
            outcomes.append(outcome._replace(report=None))
            if outcome.error is not None and fail_fast:
                break
    refused = [outcome for outcome in outcomes if outcome.error is not None]
    if common.json:
        document = {
            "out": str(folder),
            "migrated": [str(o.job.output) for o in outcomes if o.error is None],
            "refused": [_record(outcome) for outcome in refused],
        }
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    else:
        _show(outcomes, refused, folder)
    return 1 if refused else 0


def _output(folder: Path, item: Input, writing: Writing) -> Path:
    """The same place below the output folder, with the suffix of what is written."""
    path = folder / item.relative
    same = writing.format == "same"
    if writes_folder(path, writing.format) or (same and item.path.is_dir()):
        return path.with_suffix("") if path.suffix and not item.path.is_dir() else path
    if item.path.is_dir():
        return path.with_name(path.name + ".safetensors")
    suffix = {"flax": ".msgpack"}.get(writing.format, path.suffix if same else ".safetensors")
    return path.with_suffix(".safetensors" if suffix in _PICKLES else suffix)


_PICKLES = frozenset({".pt", ".bin", ".ckpt", ".pth"})


def _record(outcome: Outcome) -> dict[str, str]:
    assert outcome.error is not None
    return {
        "path": str(outcome.job.source),
        "reason": str(outcome.error.code),
        "message": str(outcome.error),
    }


def _show(outcomes: Sequence[Outcome], refused: Sequence[Outcome], folder: Path) -> None:
    console = out()
    console.print(f"{len(outcomes) - len(refused)} of {len(outcomes)} adapters are in {folder}")
    if not refused:
        return
    reasons = Counter(str(o.error.code) for o in refused if o.error is not None)
    console.print("Refused: " + ", ".join(f"{n} {code}" for code, n in reasons.most_common()))
    table = Table("adapter", "why")
    for outcome in refused[:MOST_REFUSED]:
        table.add_row(printable(str(outcome.job.source)), printable(str(outcome.error)))
    console.print(table)
    if len(refused) > MOST_REFUSED:
        console.print(f"... and {len(refused) - MOST_REFUSED} more (--json has all of them)")
