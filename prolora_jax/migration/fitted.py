"""An adapter held against the source of a migration, other algorithms made into factors."""

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.fitting import Fitted, fit
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.plans.options import MigrationOptions


def fit_to(source: BaseModel, adapter: Adapter, options: MigrationOptions) -> Fitted:
    """Hold an adapter against its source, as a migration's options say; its factors are LoRA's.

    Raises:
        AdapterRefused: see `adapters.fitting.fit`.
    """
    return fit(
        adapter,
        source.spec,
        options.assume_base,
        matrix=source.matrix,
        factor_rank=options.factors,
        keep_dora=options.dora == "keep",
    )
