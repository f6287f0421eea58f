"""Modules of LoHa and LoKr that an output has as they were in its input."""

from collections.abc import Sequence
from dataclasses import replace

from prolora_jax.adapters.adapter import Adapter, StructuredModule
from prolora_jax.adapters.algorithms.factoring import factored, stays_whole
from prolora_jax.adapters.algorithms.table import WRITTEN
from prolora_jax.adapters.formats.parsing import same_array
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action
from prolora_jax.plans.report import OWN_TENSORS, MigrationReport
from prolora_jax.verification.weights import Weights


def with_factors_of_own(output: Adapter, options: MigrationOptions, target: Weights) -> Adapter:
    """An output with LoRA factors for its modules of LoHa and LoKr, too, as its report counts them.

    Args:
        output: without modules of DoRA.
        options: of the report.
        target: base model of the output.
    """
    own = tuple(m for m in output.structured if m.algorithm in WRITTEN)
    alone = replace(output, modules=(), structured=own)
    whole = options.copies_as_is
    made = factored(alone, target.spec, None, options.factors, keep_own=True, whole_own=whole)
    return replace(output, modules=(*output.modules, *made.modules), structured=own)


def has_own(output: Adapter) -> bool:
    """Whether a file has modules that are written as they were.

    Args:
        output: as read.
    """
    return any(m.algorithm in WRITTEN for m in output.structured)


def without_whole(given: Adapter) -> Adapter:
    """An input without the modules whose factors nobody has made.

    Args:
        given: of a file all of whose modules are written as they were.
    """
    return replace(given, structured=tuple(m for m in given.structured if not stays_whole(m)))


def own_problems(output: Adapter, given: Sequence[Adapter], told: MigrationReport) -> list[str]:
    """What is wrong with modules that are written as they were.

    Args:
        output: as `with_factors_of_own` returns it.
        given: the inputs as their files have them, resolved; none where they are not there.
        told: the report.
    """
    own = {module.path: module for module in output.structured}
    records = {module.path: module for module in told.modules}
    inputs = {m.path: m for one in given for m in one.structured}
    problems = []
    for path, module in own.items():
        record = records.get(path)
        if record is None:
            continue  # that the report lacks it is said with all modules
        if record.action is not Action.COPY:
            problems.append(f"{path}: has tensors of {module.algorithm}; expected moved factors")
        elif given and not _same(module, inputs.get(record.source_path)):
            problems.append(f"{path}: its tensors of {module.algorithm} are not the input's")
    if getattr(told, "totals", None) is None:
        flagged = {module.path for module in told.modules if OWN_TENSORS in module.flags}
        problems += [
            f"{path}: the flag {OWN_TENSORS} of the report and the file's tensors do not agree"
            for path in sorted(flagged ^ (own.keys() & records.keys()))
        ]
    return problems


def _same(module: StructuredModule, other: StructuredModule | None) -> bool:
    if other is None or module.algorithm != other.algorithm or module.alpha != other.alpha:
        return False
    parts = module.parts.keys() == other.parts.keys()
    return parts and all(same_array(a, other.parts[name]) for name, a in module.parts.items())
