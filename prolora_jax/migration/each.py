"""The whole job for each transformer of a target: one output, or one for each of two experts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.migration.experts import MoreExperts, experts_of, output_for
from prolora_jax.migration.files import Writing, refuse_outputs
from prolora_jax.migration.one_file import MigratedFile, migrate_file, plan_file
from prolora_jax.migration.opening import Place
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import MigrationPlan
from prolora_jax.subspaces.store import MemoryStore

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
            `.transformer_2` before the ending, and nothing may be in its own place either.
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
    try:
        return (migrate_file(inputs, source, target, out, options, writing, **how),)
    except MoreExperts as found:
        opened, experts, how = _each(found, how)
    paths = [Path(p) for p in ([inputs] if isinstance(inputs, (str, Path)) else inputs)]
    outs = [output_for(Path(out), expert) for expert in experts]
    for output, expert in zip(outs, experts, strict=True):
        read = (*paths, opened.location, expert.location)
        refuse_outputs(paths[0], output, writing or Writing(), read=read)
    return tuple(
        migrate_file(inputs, opened, expert, output, options, writing, **how)
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
    try:
        return (plan_file(inputs, source, target, options, writing, **how),)
    except MoreExperts as found:
        opened, experts, how = _each(found, how)
    return tuple(plan_file(inputs, opened, expert, options, writing, **how) for expert in experts)


def _each(
    found: MoreExperts, how: dict[str, Any]
) -> tuple[BaseModel, tuple[BaseModel, ...], dict[str, Any]]:
    """The source, the target's transformers, and how, with one store: the source is in all pairs.

    Raises:
        UsageError: a plan is given.
        MoreExperts: the transformers are in no folders of their own.
    """
    experts = experts_of(found.target)
    if not experts:
        raise found
    if how.get("plan") is not None:
        raise UsageError(
            f"{found.target.location}: found a plan to follow, and transformers "
            f"{' and '.join(found.target.spec.layer_names.components)}; expected a plan for each; "
            f"name the folder of one of them as the target",
            code=Refusal.BAD_OPTION,
        )
    if how.get("store") is None:
        how = how | {"store": MemoryStore()}
    return found.source, experts, how
