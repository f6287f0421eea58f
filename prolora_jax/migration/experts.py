"""A target of two transformers, experts for half of the noise each, and an adapter for one.

Each expert has weights of its own, so that each gets its own plan, report and output. Readers load
the two outputs one by one, and both have the names of a single transformer.
"""

from pathlib import Path

from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel


def require_as_many_experts(source: BaseModel, target: BaseModel) -> None:
    """Refuse a target with more transformers than the source: one would get nothing.

    Raises:
        BaseModelError: it has.
    """
    experts = target.spec.layer_names.components
    if len(source.spec.layer_names.components) == 1 < len(experts):
        raise BaseModelError(
            f"{target.location}: found transformers {' and '.join(experts)}, and one in the source "
            f"{source.location}; expected as many; migrate to each by itself: its folder in "
            f"{target.location} is the target, and each needs an output of its own (both of one "
            f"adapter are written by prolora migrate, and by prolora_jax.migrate_each)",
            code=Refusal.UNMATCHED_MODULES,
        )


def experts_of(source: str | Path, target: str | Path) -> tuple[Path, ...]:
    """Folders of the transformers of a target that has several where the source has one.

    Args:
        source: where the source lies: a path, or an id on the hub.
        target: where the target lies.

    Returns:
        Nothing where both have one, or where they are no pipelines' folders.
    """
    here, there = (_folders(Path(place)) for place in (source, target))
    return there if len(there) > 1 and len(here) < 2 else ()


def output_for(output: Path, expert: Path) -> Path:
    """Where an expert's output goes: its name stands before the ending of what was asked for."""
    return output.with_name(f"{output.stem}.{expert.name}{output.suffix}")


def _folders(pipeline: Path) -> tuple[Path, ...]:
    return tuple(pipeline / name for name in DIT_COMPONENTS if (pipeline / name).is_dir())
