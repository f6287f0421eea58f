"""The whole job for each transformer of a target: one output, or one for each of two experts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.migration.experts import experts_of, output_for
from prolora_jax.migration.files import Writing, refuse_outputs
from prolora_jax.migration.one_file import MigratedFile, migrate_file, plan_file
from prolora_jax.migration.opening import Place, location_of
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import MigrationPlan

Inputs = str | Path | Sequence[str | Path]


def migrate_each(
    inputs: Inputs,
    source: Place,
    target: Place,
    out: str | Path,
    options: MigrationOptions | None = None,
    writing: Writing | None = None,
    **how: Any,
) -> tuple[MigratedFile, ...]:
    """`migrate_file`, for each transformer of a target that has one more than the source.

    Args:
        inputs: as for `migrate_file`, and so are all others.
        source: base model the adapter was trained on, or where it lies.
        target: base model it moves to, or where it lies.
        out: file (or folder) to write; of two experts both get one, with `.transformer` and
            `.transformer_2` before the ending.
        options: of the migration.
        writing: the output's format, and what may be read and replaced.
        how: `merge`, `weights`, `plan`, `store`, `workers`, `progress`.

    Returns:
        What was written: one, or one for each expert.

    Raises:
        ProloraError: as `migrate_file` does; that an output may not be written is found before
            the first one is.
        UsageError: a plan is given and there are two outputs.
    """
    experts = _experts(source, target, how)
    if not experts:
        return (migrate_file(inputs, source, target, out, options, writing, **how),)
    paths = [Path(p) for p in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    outs = [output_for(Path(out), expert) for expert in experts]
    for output, expert in zip(outs, experts, strict=True) if paths else ():
        read = (*paths, location_of(source), expert)
        refuse_outputs(paths[0], output, writing or Writing(), read=read)
    return tuple(
        migrate_file(inputs, source, expert, output, options, writing, **how)
        for output, expert in zip(outs, experts, strict=True)
    )


def plan_each(
    inputs: Inputs,
    source: Place,
    target: Place,
    options: MigrationOptions | None = None,
    writing: Writing | None = None,
    **how: Any,
) -> tuple[MigrationPlan, ...]:
    """What `migrate_each` would do; nothing is projected or written.

    Args:
        inputs: as for `migrate_each`, and so are all others.
        source: base model the adapter was trained on.
        target: base model it moves to.
        options: of the migration.
        writing: what may be read.
        how: `merge`, `weights`, `plan`, `store`, `workers`, `progress`.

    Returns:
        A plan for each output.

    Raises:
        ProloraError: what `migrate_each` would raise before it writes.
    """
    targets = _experts(source, target, how) or (target,)
    return tuple(plan_file(inputs, source, one, options, writing, **how) for one in targets)


def _experts(source: Place, target: Place, how: dict[str, Any]) -> tuple[Path, ...]:
    experts = experts_of(location_of(source), location_of(target))
    if experts and how.get("plan") is not None:
        raise UsageError(
            f"{location_of(target)}: found a plan to follow, and transformers "
            f"{' and '.join(expert.name for expert in experts)}; expected a plan for each; name "
            f"the folder of one of them as the target",
            code=Refusal.BAD_OPTION,
        )
    return experts
