"""Two base models from where they lie, as a pair."""

from pathlib import Path
from typing import Literal

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.base_models.checkpoint import BaseModel, load_base_model, with_whole
from prolora_jax.migration.experts import require_as_many_experts
from prolora_jax.migration.pair import BasePair
from prolora_jax.subspaces.store import BasisStore

Place = BaseModel | str | Path
"""A base model, or where it lies: a path, or an id on the hub."""


def location_of(place: Place) -> str | Path:
    """Where a base model lies: its path, or its id on the hub."""
    return place.location if isinstance(place, BaseModel) else place


def open_base_model(place: Place, store: BasisStore | None = None) -> BaseModel:
    """A base model; of a path, under its absolute name.

    Reports name where base models are, and are read from other folders, too.

    Args:
        place: a base model, which is handed on; or a path or hub id.
        store: what it knows of files that have not changed is believed.

    Returns:
        The base model; no weight is read yet.

    Raises:
        UsageError: there is nothing.
        BaseModelError: it cannot be used.
    """
    if isinstance(place, BaseModel):
        return place
    path = Path(place)
    known = None if store is None else store.known
    return load_base_model(path.resolve() if path.exists() else place, known)


def open_pair(
    source: Place,
    target: Place,
    store: BasisStore | None = None,
    workers: int = 1,
    fused: Literal["parts", "keep"] = "parts",
) -> BasePair:
    """A source and a target from where they lie.

    Args:
        source: base model that adapters were trained on.
        target: base model that they move to.
        store: where subspaces are found and kept; memory when None.
        workers: processes for what has to be computed.
        fused: that of the options of all migrations.

    Returns:
        The pair; no weight is read yet.

    Raises:
        UsageError: one of them is not there.
        BaseModelError: one of them cannot be used, or the target has two transformers and the
            source has one.
    """
    models = open_base_model(source, store), open_base_model(target, store)
    require_as_many_experts(*models)
    return BasePair(*(with_whole(*models) if fused == "keep" else models), store, workers)


def require_opened_for(pair: BasePair, fused: Literal["parts", "keep"]) -> None:
    """Check that a pair was opened for what a migration does with fused layers.

    Raises:
        UsageError: it was not.
    """
    opened = "parts" if pair.source.spec.whole is None else "keep"
    if opened != fused:
        raise UsageError(
            f"--fused {fused}: found base models opened for {opened}; expected one of them; say "
            f"--fused {fused} where they are opened, too",
            code=Refusal.BAD_OPTION,
        )
