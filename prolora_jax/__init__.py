"""Move LoRA adapters between base models in closed form (ProLoRA), in JAX.

Names are loaded when they are first used, so that importing the package starts no device and
`prolora --help` does not wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prolora_jax.adapter import Adapter as Adapter
    from prolora_jax.adapter import LoraModule as LoraModule
    from prolora_jax.adapter import alike as alike
    from prolora_jax.adapter import delta as delta
    from prolora_jax.architectures.flax_names import unet_from_flax as unet_from_flax
    from prolora_jax.architectures.flax_names import unet_to_flax as unet_to_flax
    from prolora_jax.bases import MemoryStore as MemoryStore
    from prolora_jax.bases import compute_bases as compute_bases
    from prolora_jax.errors import AdapterRefused as AdapterRefused
    from prolora_jax.errors import BaseModelError as BaseModelError
    from prolora_jax.errors import ProloraError as ProloraError
    from prolora_jax.errors import UsageError as UsageError
    from prolora_jax.formats.flax_tree import from_flax as from_flax
    from prolora_jax.formats.flax_tree import to_flax as to_flax
    from prolora_jax.io.adapters import load_adapter as load_adapter
    from prolora_jax.io.adapters import save_adapter as save_adapter
    from prolora_jax.io.basis_store import FolderStore as FolderStore
    from prolora_jax.io.checkpoint import BaseModel as BaseModel
    from prolora_jax.io.checkpoint import load_base_model as load_base_model
    from prolora_jax.migration import make_plan as make_plan
    from prolora_jax.migration import migrate as migrate
    from prolora_jax.migration import run_plan as run_plan
    from prolora_jax.models.adapted import adapted as adapted
    from prolora_jax.models.generation import generate as generate
    from prolora_jax.models.loading import load_unet as load_unet
    from prolora_jax.models.loading import save_unet as save_unet
    from prolora_jax.models.lora import attach as attach
    from prolora_jax.models.lora import attached as attached
    from prolora_jax.models.lora import detach as detach
    from prolora_jax.models.lora import merge as merge
    from prolora_jax.models.lora import unmerge as unmerge
    from prolora_jax.models.pipeline_loading import load_pipeline as load_pipeline
    from prolora_jax.models.stock import stock_pipeline as stock_pipeline
    from prolora_jax.options import MigrationOptions as MigrationOptions
    from prolora_jax.pair import BasePair as BasePair
    from prolora_jax.plan import MigrationPlan as MigrationPlan
    from prolora_jax.report import MigrationReport as MigrationReport
    from prolora_jax.verify import verify_adapter as verify_adapter

_HOME = {
    # adapters
    "Adapter": "adapter",
    "LoraModule": "adapter",
    "delta": "adapter",
    "load_adapter": "io.adapters",
    "save_adapter": "io.adapters",
    "from_flax": "formats.flax_tree",
    "to_flax": "formats.flax_tree",
    # base models and their bases
    "BaseModel": "io.checkpoint",
    "load_base_model": "io.checkpoint",
    "FolderStore": "io.basis_store",
    "MemoryStore": "bases",
    "compute_bases": "bases",
    # the same as nets that run
    "load_unet": "models.loading",
    "save_unet": "models.loading",
    "unet_from_flax": "architectures.flax_names",
    "unet_to_flax": "architectures.flax_names",
    # adapters on them
    "adapted": "models.adapted",
    "alike": "adapter",
    "attach": "models.lora",
    "attached": "models.lora",
    "detach": "models.lora",
    "merge": "models.lora",
    "unmerge": "models.lora",
    # pictures
    "generate": "models.generation",
    "load_pipeline": "models.pipeline_loading",
    "stock_pipeline": "models.stock",
    # migration
    "BasePair": "pair",
    "MigrationOptions": "options",
    "MigrationPlan": "plan",
    "MigrationReport": "report",
    "make_plan": "migration",
    "migrate": "migration",
    "run_plan": "migration",
    "verify_adapter": "verify",
    # errors
    "AdapterRefused": "errors",
    "BaseModelError": "errors",
    "ProloraError": "errors",
    "UsageError": "errors",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prolora_jax' has no attribute {name!r}")
    value = getattr(import_module(f"prolora_jax.{_HOME[name]}"), name)
    globals()[name] = value
    return value
