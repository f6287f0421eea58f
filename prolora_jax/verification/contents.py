"""Every tensor of a file accounted for: modules, ranks, and what is carried along."""

from collections import Counter
from collections.abc import Collection

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.parsing import same_array
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.plans.plan import BY_TOKEN, SLICED, UNVERIFIED_TEXT_ENCODER
from prolora_jax.plans.report import MigrationReport, ModuleReport
from prolora_jax.verification.weights import shape_of

SCALES_FOLDED = frozenset({"diffusers", "peft"})
"""Formats that cannot hold an alpha that belongs to no module; it has no effect anywhere."""


def module_problems(output: Adapter, told: MigrationReport) -> list[str]:
    """Modules that are in the file and not in its report, or in one of them twice.

    Args:
        output: the file.
        told: its report.
    """
    moved = Counter(module.path for module in told.modules)
    held = Counter(module.path for module in output.modules)
    skipped = {s.path: s.reason for s in told.skipped}
    problems = []
    for path in held.keys() - moved.keys():
        said = f"skipped it ({skipped[path]})" if path in skipped else "has no such module"
        problems.append(f"{path}: the file has it, the report {said}")
    if max(*held.values(), *moved.values(), 0, 0) > 1:
        problems.append(f"{output.origin}: a module is there twice")
    return problems


def rank_problems(
    output: Adapter, told: MigrationReport, uniform: bool, own: Collection[str] = ()
) -> list[str]:
    """Ranks that the file should not have.

    Args:
        output: the file.
        told: its report.
        uniform: one rank everywhere, as where the input has one or it was asked for; else each
            module has its own.
        own: paths of modules that are written as they are.
    """
    said = {module.path: module.rank_out for module in told.modules if module.path not in own}
    widest = max(said.values(), default=0)
    return [
        f"{module.path}: the file has rank {module.rank}; expected {widest}, as everywhere"
        if uniform
        else f"{module.path}: the file has rank {module.rank}; the report says {said[module.path]}"
        for module in output.modules
        if module.path in said
        and module.rank not in ((widest,) if uniform else (said[module.path], widest))
    ]


def cannot_compare(
    told: ModuleReport,
    before: LoraModule | None,
    after: LoraModule | None,
    source: BaseModelSpec,
    target: BaseModelSpec,
) -> str:
    """Why there is nothing to compare of a module; empty when there is.

    Args:
        told: its record.
        before: the input's module.
        after: the output's.
        source: modules of the source.
        target: modules of the target.
    """
    if before is None:
        return f"the input has no module {told.source_path}"
    if after is None:
        return "the report has it, the file does not"
    specs = target.modules.get(told.path), source.modules.get(told.source_path)
    wanted = [spec.matrix_shape for spec in specs if spec is not None]
    found = [shape_of(after), shape_of(before)]
    if {BY_TOKEN, SLICED} & {
        *told.flags
    } and found == wanted:  # whether it should have it, the plan says
        return ""
    # A text encoder's module may be passed through where no base has its weight.
    if not wanted and UNVERIFIED_TEXT_ENCODER not in told.flags:
        return "neither base model has it"
    if len({*wanted, *found}) == 1:
        return ""
    return f"has shapes {found} where target and source have {wanted}"


def extra_problems(output: Adapter, before: Adapter, told: MigrationReport) -> list[str]:
    """Tensors that are no factors: those of the input, bit for bit, and no other.

    Args:
        output: the file.
        before: its input.
        told: its report.
    """
    problems, left = [], dict(output.extras)
    if sorted(told.carried) != sorted(before.extras):
        problems.append(
            f"report has {len(told.carried)} tensors carried along, first "
            f"{', '.join(sorted(told.carried)[:3]) or 'none'}; the input has "
            f"{', '.join(sorted(before.extras)[:3]) or 'none'}"
        )
    for key, there in before.extras.items():
        # PEFT's own files of one network have keys without a component.
        name = key if key in left else key.removeprefix("unet.")
        here = left.pop(name, None)
        if here is None and key.endswith(".alpha") and output.format in SCALES_FOLDED:
            continue
        if here is None or not same_array(np.asarray(there), np.asarray(here)):
            problems.append(f"{key}: carried along by the report, but not as in the input")
    problems += [f"{key}: the file has it, but neither the input nor the report" for key in left]
    return problems
