"""The Flax classes of diffusers and transformers: loaded guarded, and mended where they break.

Both dropped Flax: diffusers after 0.39, transformers after 4.57. What is left does not know newer
versions of JAX. Here, and nowhere else in the package, these libraries are imported: for those who
have diffusers' own pipelines in their code (`stock_pipeline`), which bring transformers along.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.promotion import numpy_promotion

_TOO_NEW = {"diffusers": (0, 40), "transformers": (5,)}
_REMEDY = "pip install 'diffusers<0.40' 'transformers<5'"
# Where each class is; taken from there, as the libraries' own top level imports much more.
_HOMES = {
    "FlaxStableDiffusionPipeline": "diffusers.pipelines.stable_diffusion."
    "pipeline_flax_stable_diffusion",
    "FlaxStableDiffusionXLPipeline": "diffusers.pipelines.stable_diffusion_xl."
    "pipeline_flax_stable_diffusion_xl",
}


def flax_class(name: str) -> Any:
    """A class of diffusers or transformers, mended.

    Args:
        name: one of those above.

    Returns:
        The class.

    Raises:
        UsageError: its library is not installed, or is a version without Flax.
    """
    with theirs():
        found = getattr(import_module(_HOMES[name]), name)
        _mend()
    return found


@contextmanager
def theirs() -> Iterator[None]:
    """Within this context the two libraries run as they are used to.

    They log errors only, as each class says that it is deprecated; and arrays of different dtypes
    and ranks are brought together as NumPy does it, whatever this program has asked JAX for.

    Raises:
        UsageError: a library is not installed, or is a version without Flax.
    """
    for library in _TOO_NEW:
        _require(library)
    levels = {logging: logging.get_verbosity() for logging in map(_logging, _TOO_NEW)}
    try:
        for logging in levels:
            logging.set_verbosity_error()
        with numpy_promotion():
            yield
    finally:
        for logging, level in levels.items():
            logging.set_verbosity(level)


def _logging(library: str) -> Any:
    """The module that has the library's verbosity; a library that is new here says nothing."""
    name = f"{library.upper()}_VERBOSITY"
    if library in sys.modules or name in os.environ:
        return import_module(f"{library}.utils.logging")
    os.environ[name] = "error"  # they already speak while they are imported
    try:
        logging = import_module(f"{library}.utils.logging")
    finally:
        del os.environ[name]
    logging.set_verbosity_warning()  # as it would be without that
    return logging


def _require(library: str) -> None:
    limit = _TOO_NEW[library]
    named = f"{library}<{'.'.join(map(str, limit))}"
    try:
        found = version(library)
    except PackageNotFoundError:
        found = None
    if found is None or tuple(int(n) for n in found.split(".")[: len(limit)]) >= limit:
        raise UsageError(
            f"{library}: found {'no such library' if found is None else f'version {found}'}; "
            f"expected {named}, the last with Flax, for its own pipelines; {_REMEDY}",
            code=Refusal.MISSING_LIBRARY,
        )


@cache
def _mend() -> None:
    """What broke with JAX 0.6 and later, mended in the modules that are concerned, once."""
    if not hasattr(jax, "tree_map"):
        module = import_module("diffusers.models.modeling_flax_utils")
        tree = jax.tree_util
        names = {"tree_map": tree.tree_map, "tree_flatten": tree.tree_flatten}
        vars(module)["jax"] = _Patched(jax, names)
    for name in (
        "diffusers.pipelines.stable_diffusion.safety_checker_flax",
        "diffusers.schedulers.scheduling_ddpm_flax",
    ):
        vars(import_module(name))["jnp"] = _Patched(jnp, {"clip": _clip})


def _clip(array: Any, a_min: Any = None, a_max: Any = None, **bounds: Any) -> Any:
    """`jnp.clip` under the names that its bounds had before."""
    return jnp.clip(array, bounds.get("min", a_min), bounds.get("max", a_max))


class _Patched(ModuleType):
    """A module with some names replaced, for one importer; everybody else's is untouched."""

    def __init__(self, module: ModuleType, names: Mapping[str, Any]):
        super().__init__(module.__name__)
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
