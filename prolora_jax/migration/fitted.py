"""An adapter held against the source of a migration, other algorithms made into factors."""

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.fitting import Fitted, fit
from prolora_jax.adapters.formats.magnitude_keys import require_place
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.migration.own_modules import holds_own
from prolora_jax.plans.options import MigrationOptions


def fit_to(
    source: BaseModel,
    adapter: Adapter,
    options: MigrationOptions,
    format: str = "kohya",
    *,
    folder: bool = False,
) -> Fitted:
    """Hold an adapter against its source, as a migration's options say; its factors are LoRA's.

    Args:
        source: base model that it was trained on.
        adapter: as read.
        options: of the migration.
        format: that the output is to have, as it is asked for; by default one that holds anything.
        folder: whether input and output are folders as peft writes them.

    Raises:
        AdapterRefused: see `adapters.fitting.fit`; or the format does not hold what is kept.
    """
    found = fit(
        adapter,
        source.spec,
        options.assume_base,
        matrix=source.matrix,
        bias=source.bias,
        factor_rank=options.factors,
        keep_dora=options.dora == "keep",
        late=True,
        keep_own=holds_own(adapter, format, options, folder=folder),
        whole_own=options.copies_as_is,
    )
    require_place(found.adapter, format)
    return found
