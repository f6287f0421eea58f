"""A target of two transformers, experts for half of the noise each, and an adapter for one.

Each expert has weights of its own, so that each gets its own plan, report and output. Readers load
the two outputs one by one, and both have the names of a single transformer.
"""

from dataclasses import replace
from pathlib import Path

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.adapters.peft_folder import ADAPTER_SUFFIXES
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model

# Of outputs: a number after a point in a name is none.
_ENDINGS = ADAPTER_SUFFIXES | {".gguf", ".peft"}


class MoreExperts(BaseModelError):
    """Raised for a target with more transformers than the source: one would get nothing.

    Attributes:
        source: the source.
        target: the target.
    """

    def __init__(self, source: BaseModel, target: BaseModel):
        self.source, self.target = source, target
        super().__init__(
            f"{target.location}: found transformers "
            f"{' and '.join(target.spec.layer_names.components)}, and one in the source "
            f"{source.location}; expected as many; migrate to each by itself: its folder in "
            f"{target.place or target.location} is the target, and each needs an output of its own "
            f"(both of one adapter are written by prolora migrate, and by "
            f"prolora_jax.migrate_each)",
            code=Refusal.UNMATCHED_MODULES,
        )


def require_as_many_experts(source: BaseModel, target: BaseModel) -> None:
    """Refuse a target with more transformers than the source.

    Raises:
        MoreExperts: it has.
    """
    components = (model.spec.layer_names.components for model in (source, target))
    if len(next(components)) == 1 < len(next(components)):
        raise MoreExperts(source, target)


def experts_of(target: BaseModel) -> tuple[BaseModel, ...]:
    """The transformers of a target that has several, each as a base model of its own.

    Args:
        target: with the place of its weights, which of an id on the hub is where it was fetched to.

    Returns:
        The models, under the target's name and each with its folder as location; nothing where no
        folder of a pipeline is there.
    """
    components = target.spec.layer_names.components
    # Where the pipeline leads to, and not its folders: each output has the name of one of these.
    pipeline = None if target.place is None else target.place.resolve()
    folders = [pipeline / name for name in components if pipeline is not None]
    if not folders or not all(folder.is_dir() for folder in folders):
        return ()
    opened = (load_base_model(folder, target.known) for folder in folders)
    # A folder of the hub's is named by a hash.
    return tuple(replace(one, spec=replace(one.spec, name=target.spec.name)) for one in opened)


def output_for(output: Path, expert: BaseModel) -> Path:
    """Where an expert's output goes: its name stands before the ending of what was asked for."""
    ending = output.suffix if output.suffix.lower() in _ENDINGS else ""
    name = output.name.removesuffix(ending)
    return output.with_name(f"{name}.{Path(expert.location).name}{ending}")
