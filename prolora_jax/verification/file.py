"""A migrated file checked: its report, its input and both base models are read for it.

This file alone of its wing reads from disks, through `io`. What reads a file is shared with what
wrote it; what recomputes it (`adapter`, `dense`) is not.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.algorithms.factoring import factored
from prolora_jax.adapters.combination import combine
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model
from prolora_jax.io.outputs.reports import pair_report_above, read_any_report
from prolora_jax.plans.folder_report import FileReport, whole_report
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.report import MigrationReport
from prolora_jax.verification.adapter import verify_adapter
from prolora_jax.verification.result import VerifyReport
from prolora_jax.verification.structured import factor_problems


def verify_file(
    output: str | Path,
    source_lora: str | Path | None = None,
    source: str | Path | None = None,
    target: str | Path | None = None,
    *,
    allow_pickle: bool = False,
    quiet: bool = False,
    open_model: Callable[[str | Path], BaseModel] = load_base_model,
    progress: Callable[[str, int, int], None] | None = None,
) -> VerifyReport:
    """Recompute a migrated file on the dense float64 path and compare.

    Args:
        output: the migrated adapter; its report stands beside it.
        source_lora: the adapter it was made from; from the report when None.
        source: source base model; from the report when None.
        target: target base model; from the report when None.
        allow_pickle: whether the adapter it was made from may be a pickle.
        quiet: log nothing where a file of peft's has no configuration beside it.
        open_model: how a base model is opened; who checks many files opens each once.
        progress: called with (what, done, total).

    Returns:
        What was found, module by module.

    Raises:
        UsageError: there is no report, or a file that it names is not there.
        AdapterRefused: an adapter cannot be read.
        BaseModelError: a base model cannot be used.
    """
    output = Path(output)
    told = read_any_report(output)
    source_model = open_model(source or told.source.location)
    target_model = open_model(target or told.target.location)
    parts = told.parts if isinstance(told, MigrationReport) else ()
    if parts and source_lora is not None:
        raise UsageError(
            f"{output}: found that it was made of {len(parts)} adapters; expected no "
            "--source-lora; keep them where its report says they are",
            code=Refusal.BAD_OPTION,
        )
    read = partial(
        load_adapter,
        base=source_model.spec,
        alpha_zero=told.options.alpha_zero,
        allow_pickle=allow_pickle,
        quiet=quiet,
        structured=True,
    )
    given = tuple(read(part.location) for part in parts)
    if not parts:
        given = (read(source_lora or told.input.location),)
    made = tuple(_made(one, source_model, told.options) for one in given)
    original = combine(made, [part.weight for part in parts]) if parts else made[0]
    migrated = load_adapter(output, target_model.spec, quiet=quiet)
    if isinstance(told, FileReport):
        shared = pair_report_above(output, told.pair)
        specs = source_model.spec, target_model.spec
        told = whole_report(told, shared, original, migrated, *specs)
    report = told.to_dict()
    checked = verify_adapter(
        migrated,
        original,
        source_model,
        target_model,
        report,
        progress,
        parts=made if parts else (),
    )
    return _with_factors(checked, given, made, source_model, told.options)


def _made(adapter: Adapter, source: BaseModel, options: MigrationOptions) -> Adapter:
    """With LoRA factors alone, as the migration made them."""
    return factored(adapter, source.spec, source.matrix, options.factors)


def _with_factors(
    checked: VerifyReport,
    given: Sequence[Adapter],
    made: Sequence[Adapter],
    source: BaseModel,
    options: MigrationOptions,
) -> VerifyReport:
    """The check, with what is wrong with factors that were made of other algorithms' updates."""
    shapes = {path: module.shape for path, module in source.spec.modules.items()}
    how = shapes, source.matrix, options.factors.energy, options.factors.most
    found = [
        f"{path}: {problem}"
        for one, factors in zip(given, made, strict=True)
        for path, problems in factor_problems(one, factors, *how).items()
        for problem in problems
    ]
    if not found:
        return checked
    return replace(checked, ok=False, problems=tuple(sorted((*checked.problems, *found))))
