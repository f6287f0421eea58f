"""A migrated file checked: its report, its input and both base models are read for it.

This file alone of its wing reads from disks, through `io`. What reads a file is shared with what
wrote it; what recomputes it (`adapter`, `dense`) is not.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.algorithms.companions import without_copies
from prolora_jax.adapters.algorithms.factoring import factored
from prolora_jax.adapters.combination import combine
from prolora_jax.adapters.formats.header_strings import as_plain_lora
from prolora_jax.adapters.formats.original_layers import cut_alike, whole_again
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model, with_whole
from prolora_jax.io.outputs.reports import (
    pair_report_above,
    read_any_report,
    report_path,
    unknown_in,
)
from prolora_jax.plans.folder_report import FileReport, whole_report
from prolora_jax.plans.report import MergedPart, MigrationReport, Party
from prolora_jax.verification.adapter import verify_adapter
from prolora_jax.verification.factors import with_factors
from prolora_jax.verification.magnitudes import (
    magnitude_problems,
    without_magnitudes,
)
from prolora_jax.verification.own_tensors import (
    has_own,
    own_problems,
    with_factors_of_own,
    without_whole,
)
from prolora_jax.verification.recompute import UNASKED, Thoroughness
from prolora_jax.verification.refined import unlearned, with_learned
from prolora_jax.verification.result import VerifyReport, with_problems
from prolora_jax.verification.without_input import stand_in_of_file, verify_without_input


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
    thoroughness: Thoroughness = UNASKED,
) -> VerifyReport:
    """Recompute a migrated file on the dense float64 path and compare.

    Of a file for which that would take minutes, modules are drawn (`VerifyReport.sample`).

    Args:
        output: the migrated adapter; its report stands beside it.
        source_lora: the adapter it was made from; from the report when None. Where nothing is
            there that the report names, only what can be checked without it is.
        source: source base model; from the report when None.
        target: target base model; from the report when None.
        allow_pickle: whether the adapter it was made from may be a pickle.
        quiet: log nothing where a file of peft's has no configuration beside it.
        open_model: how a base model is opened; who checks many files opens each once.
        progress: called with (what, done, total).
        thoroughness: how much is recomputed.

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
    if told.options.fused == "keep":
        source_model, target_model = with_whole(source_model, target_model)
    parts = told.parts if isinstance(told, MigrationReport) else ()
    absent = () if source_lora is not None else _absent(parts or (told.input,))
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
    given: tuple[Adapter, ...] = ()
    if not absent:
        places = [part.location for part in parts] or [source_lora or told.input.location]
        given = tuple(read(place) for place in places)
    # With LoRA factors alone, as the migration made them.
    how = source_model.spec, source_model.matrix, told.options.factors
    written = _written(output, told, target_model.spec, quiet=quiet)
    as_they_are = told.options.copies_as_is and has_own(written)
    kept = {"bias": source_model.bias, "keep_dora": told.options.dora == "keep"}
    kept |= {"keep_own": as_they_are, "whole_own": as_they_are}
    bare = (without_copies(one, source_model.matrix, source_model.bias) for one in given)
    made = tuple(factored(one, *how, **kept) for one in bare)
    original = None
    if made:
        alike = cut_alike(made, source_model.spec)
        original = combine(alike, [part.weight for part in parts]) if parts else made[0]
    migrated = with_factors_of_own(without_magnitudes(written), told.options, target_model)
    if original is not None and given and not written.structured:
        original = _plain(original)
    unknown = unknown_in(report_path(output), told)
    if isinstance(told, FileReport):
        place, shared = pair_report_above(output, told.pair)
        unknown += tuple(f"{place.name}: {name}" for name in unknown_in(place, shared))
        like = original or stand_in_of_file(told, shared, migrated)
        told = whole_report(told, shared, like, migrated, source_model.spec, target_model.spec)
    models, as_read = (source_model, target_model), told
    back = unlearned(migrated, original, told, target_model.spec)
    migrated, told = back.output, back.report
    report = told.to_dict()
    apart = (
        back.problems
        + magnitude_problems(written, given, *models, told)
        + own_problems(migrated, given, told)
    )
    if original is None:
        how_much = {"unknown": unknown, "thoroughness": thoroughness}
        checked = verify_without_input(migrated, *models, report, absent, progress, **how_much)
        checked = with_learned(checked, back, as_read)
        return with_problems(checked, apart)
    own = made if parts else ()
    checked = verify_adapter(
        migrated,
        original,
        *models,
        report,
        progress,
        parts=own,
        unknown=unknown,
        thoroughness=thoroughness,
    )
    checked = with_learned(checked, back, as_read)
    if as_they_are:
        given = tuple(without_whole(one) for one in given)
    checked = with_factors(checked, given, made, source_model, told.options)
    return with_problems(checked, apart)


def _written(
    output: Path, told: MigrationReport | FileReport, spec: BaseModelSpec, *, quiet: bool
) -> Adapter:
    """The output; layers that the report has whole are whole, whatever the file has."""
    written = load_adapter(output, spec.in_parts, quiet=quiet, structured=True)
    if spec.whole is None:
        return written
    whole = [m.path for m in told.modules] if isinstance(told, MigrationReport) else spec.whole
    return whole_again(written, whole, spec)


def _plain(original: Adapter) -> Adapter:
    """An input whose output is plain LoRA, with the header strings of such a one."""
    made = any(module.made_from is not None for module in original.modules)
    return replace(original, metadata=as_plain_lora(original.metadata)) if made else original


def _absent(made_from: Sequence[Party | MergedPart]) -> tuple[str, ...]:
    """Where nothing is of what a report says that its output was made from."""
    return tuple(one.location for one in made_from if not os.path.exists(one.location))
