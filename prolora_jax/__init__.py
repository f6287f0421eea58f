"""Move LoRA adapters between base models in closed form (ProLoRA), in JAX.

Names are loaded when they are first used, so that importing the package starts no device and
`prolora --help` does not wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prolora_jax.adapters.adapter import Adapter as Adapter
    from prolora_jax.adapters.adapter import LoraModule as LoraModule
    from prolora_jax.adapters.adapter import alike as alike
    from prolora_jax.adapters.adapter import delta as delta
    from prolora_jax.adapters.combination import combine as combine
    from prolora_jax.adapters.fitting import Fitted as Fitted
    from prolora_jax.adapters.fitting import fit as fit
    from prolora_jax.adapters.formats.flax_tree import from_flax as from_flax
    from prolora_jax.adapters.formats.flax_tree import to_flax as to_flax
    from prolora_jax.architectures.flax_trees import unet_from_flax as unet_from_flax
    from prolora_jax.architectures.flax_trees import unet_to_flax as unet_to_flax
    from prolora_jax.catalog.catalog import catalog_status as catalog_status
    from prolora_jax.catalog.catalog import run_catalog as run_catalog
    from prolora_jax.catalog.catalog import scan_catalog as scan_catalog
    from prolora_jax.catalog.catalog import write_page as write_page
    from prolora_jax.catalog.refined import refine_files as refine_files
    from prolora_jax.catalog.run import CatalogJob as CatalogJob
    from prolora_jax.catalog.verify import verify_catalog as verify_catalog
    from prolora_jax.errors import AdapterRefused as AdapterRefused
    from prolora_jax.errors import BaseModelError as BaseModelError
    from prolora_jax.errors import ProloraError as ProloraError
    from prolora_jax.errors import UsageError as UsageError
    from prolora_jax.evaluation.demo_run import run_demo as run_demo
    from prolora_jax.evaluation.side_by_side import Request as Request
    from prolora_jax.evaluation.side_by_side import draw_to_file as draw_to_file
    from prolora_jax.io.adapters.files import load_adapter as load_adapter
    from prolora_jax.io.adapters.files import save_adapter as save_adapter
    from prolora_jax.io.adapters.whole_files import compare_files as compare_files
    from prolora_jax.io.adapters.whole_files import convert_file as convert_file
    from prolora_jax.io.adapters.whole_files import inspect_file as inspect_file
    from prolora_jax.io.base_models.checkpoint import BaseModel as BaseModel
    from prolora_jax.io.base_models.checkpoint import load_base_model as load_base_model
    from prolora_jax.io.stores.basis_store import FolderStore as FolderStore
    from prolora_jax.migration.ahead import build_subspaces as build_subspaces
    from prolora_jax.migration.base_similarity import similarity as similarity
    from prolora_jax.migration.each import migrate_each as migrate_each
    from prolora_jax.migration.each import plan_each as plan_each
    from prolora_jax.migration.files import Writing as Writing
    from prolora_jax.migration.one_file import migrate_file as migrate_file
    from prolora_jax.migration.one_file import plan_file as plan_file
    from prolora_jax.migration.pair import BasePair as BasePair
    from prolora_jax.migration.single import make_plan as make_plan
    from prolora_jax.migration.single import migrate as migrate
    from prolora_jax.migration.single import run_plan as run_plan
    from prolora_jax.nets.adapters.adapted import adapted as adapted
    from prolora_jax.nets.adapters.lora import attach as attach
    from prolora_jax.nets.adapters.lora import attached as attached
    from prolora_jax.nets.adapters.lora import detach as detach
    from prolora_jax.nets.adapters.lora import merge as merge
    from prolora_jax.nets.adapters.lora import unmerge as unmerge
    from prolora_jax.nets.pipelines.delta import draw_delta as draw_delta
    from prolora_jax.nets.pipelines.generation import generate as generate
    from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline as load_pipeline
    from prolora_jax.nets.pipelines.stock import stock_pipeline as stock_pipeline
    from prolora_jax.nets.unet.loading import load_unet as load_unet
    from prolora_jax.nets.unet.loading import save_unet as save_unet
    from prolora_jax.plans.options import MigrationOptions as MigrationOptions
    from prolora_jax.plans.plan import MigrationPlan as MigrationPlan
    from prolora_jax.plans.report import MigrationReport as MigrationReport
    from prolora_jax.plans.rules import ModuleRule as ModuleRule
    from prolora_jax.refine.job.bases import DrawingBases as DrawingBases
    from prolora_jax.refine.job.by_samples import by_samples as by_samples
    from prolora_jax.refine.job.files import RefineRequest as RefineRequest
    from prolora_jax.refine.job.recipe import RefineRecipe as RefineRecipe
    from prolora_jax.subspaces.compute import compute_subspaces as compute_subspaces
    from prolora_jax.subspaces.store import MemoryStore as MemoryStore
    from prolora_jax.verification.adapter import verify_adapter as verify_adapter
    from prolora_jax.verification.file import verify_file as verify_file

_HOME = {
    # adapters
    "Adapter": "adapters.adapter",
    "LoraModule": "adapters.adapter",
    "combine": "adapters.combination",
    "delta": "adapters.adapter",
    "fit": "adapters.fitting",
    "Fitted": "adapters.fitting",
    "load_adapter": "io.adapters.files",
    "save_adapter": "io.adapters.files",
    "from_flax": "adapters.formats.flax_tree",
    "to_flax": "adapters.formats.flax_tree",
    # base models and their bases
    "BaseModel": "io.base_models.checkpoint",
    "load_base_model": "io.base_models.checkpoint",
    "FolderStore": "io.stores.basis_store",
    "MemoryStore": "subspaces.store",
    "compute_subspaces": "subspaces.compute",
    "compute_bases": "subspaces.compute:compute_subspaces",  # its name until 0.1.0
    # the same as nets that run
    "load_unet": "nets.unet.loading",
    "save_unet": "nets.unet.loading",
    "unet_from_flax": "architectures.flax_trees",
    "unet_to_flax": "architectures.flax_trees",
    # adapters on them
    "adapted": "nets.adapters.adapted",
    "alike": "adapters.adapter",
    "attach": "nets.adapters.lora",
    "attached": "nets.adapters.lora",
    "detach": "nets.adapters.lora",
    "merge": "nets.adapters.lora",
    "unmerge": "nets.adapters.lora",
    # pictures
    "generate": "nets.pipelines.generation",
    "draw_delta": "nets.pipelines.delta",
    "load_pipeline": "nets.pipelines.pipeline_loading",
    "stock_pipeline": "nets.pipelines.stock",
    # migration
    "BasePair": "migration.pair",
    "MigrationOptions": "plans.options",
    "MigrationPlan": "plans.plan",
    "MigrationReport": "plans.report",
    "ModuleRule": "plans.rules",
    "make_plan": "migration.single",
    "migrate": "migration.single",
    "run_plan": "migration.single",
    "verify_adapter": "verification.adapter",
    # whole jobs, from files to files: what each command calls
    "migrate_file": "migration.one_file",
    "plan_file": "migration.one_file",
    "migrate_each": "migration.each",
    "plan_each": "migration.each",
    "Writing": "migration.files",
    "verify_file": "verification.file",
    "refine_files": "catalog.refined",
    "DrawingBases": "refine.job.bases",
    "RefineRequest": "refine.job.files",
    "RefineRecipe": "refine.job.recipe",
    "by_samples": "refine.job.by_samples",
    "similarity": "migration.base_similarity",
    "build_subspaces": "migration.ahead",
    "convert_file": "io.adapters.whole_files",
    "inspect_file": "io.adapters.whole_files",
    "compare_files": "io.adapters.whole_files",
    "CatalogJob": "catalog.run",
    "scan_catalog": "catalog.catalog",
    "run_catalog": "catalog.catalog",
    "catalog_status": "catalog.catalog",
    "write_page": "catalog.catalog",
    "verify_catalog": "catalog.verify",
    "Request": "evaluation.side_by_side",
    "draw_to_file": "evaluation.side_by_side",
    "run_demo": "evaluation.demo_run",
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
    home, _, there = _HOME[name].partition(":")
    value = getattr(import_module(f"prolora_jax.{home}"), there or name)
    globals()[name] = value
    return value
