"""An adapter against a base model: every module gets its dotted path and is checked."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np

from prolora_jax.adapters.adapter import Adapter, Companion, LoraModule, StructuredModule
from prolora_jax.adapters.algorithms.table import algorithm_for
from prolora_jax.adapters.formats.components import is_layer_of_text_encoder
from prolora_jax.adapters.formats.keys import KOHYA_UNET
from prolora_jax.adapters.formats.other_networks import apart
from prolora_jax.adapters.formats.parsing import same_array
from prolora_jax.adapters.formats.regrouping import regrouped
from prolora_jax.adapters.formats.transformer_layers import of_transformers
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.naming import flat
from prolora_jax.architectures.norms import layer_by_flat_name
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.errors import AdapterRefused, Refusal

_log = logging.getLogger(__name__)


def resolve(adapter: Adapter, spec: BaseModelSpec) -> Adapter:
    """Give every module its dotted path in `spec` and check its shapes.

    Modules of text encoders are left as they are where `spec` knows no text encoder: it may have
    been read from a UNet alone. Resolving twice changes nothing.

    Args:
        adapter: as parsed.
        spec: the base model it was trained on.

    Returns:
        The adapter with dotted paths; factors untouched.

    Raises:
        AdapterRefused: a module is not in the base, has other shapes, or occurs twice with
            different numbers.
    """
    adapter = apart(regrouped(of_transformers(adapter, spec), spec), spec)
    every = (*adapter.modules, *adapter.structured)
    paths = {module.path: _path(module.path, spec) for module in every}
    _require_all(adapter, paths, spec)
    # Before anything is said of a second module: in another base model it may be another layer.
    _require_shapes(adapter, paths, spec)
    _require_parts(adapter, paths, spec)
    found: dict[str, LoraModule | StructuredModule] = {}
    for module in every:
        path = paths[module.path]
        assert path is not None  # _require_all
        known = found.get(path)
        if known is None:
            found[path] = replace(module, path=path)
        elif not _same(known, module):
            _refuse_second(adapter.origin, path, module.path)
    if len(found) < len(every):
        repeated = len(every) - len(found)
        _log.warning("%s: %d modules occur under two names; one is kept", adapter.origin, repeated)
    modules = tuple(m for m in found.values() if isinstance(m, LoraModule))
    others = tuple(m for m in found.values() if isinstance(m, StructuredModule))
    companions = _resolved(adapter.companions, spec, adapter.origin) if adapter.companions else ()
    return replace(adapter, modules=modules, structured=others, companions=companions)


def require_one_spelling(adapter: Adapter) -> None:
    """Refuse an adapter that has a module twice, as far as names alone can tell.

    A flat name of the old Stable Diffusion code and a diffusers name of one layer are told
    apart with a base model only: `resolve` does that, and `published.told_apart`.

    Args:
        adapter: as parsed.

    Raises:
        AdapterRefused: a module occurs in two spellings with different numbers.
    """
    found: dict[str, LoraModule | StructuredModule] = {}
    for module in (*adapter.modules, *adapter.structured):
        name = module.path
        for prefix in (KOHYA_UNET, "unet.", "unet/"):
            if name.startswith(prefix):
                name = "unet." + flat(name.removeprefix(prefix).replace("/", "."))
                break
        known = found.setdefault(name, module)
        if not _same(known, module):
            _refuse_second(adapter.origin, known.path, module.path)


def _refuse_second(origin: str, path: str, other: str) -> NoReturn:
    raise AdapterRefused(
        f"{origin}: {path}: found twice with different numbers, once as {other}; expected one; "
        f"remove the wrong one",
        code=Refusal.DUPLICATE_MODULE,
    )


def fits(module: LoraModule, spec: ModuleSpec) -> bool:
    """Whether the factors have the shapes of this layer; for 1x1 windows 2 or 4 axes will do."""
    out, width, *window = spec.shape
    if module.made_from is not None:  # a sketch of another algorithm's module may lack the window
        return module.down.size == module.rank * width * int(np.prod(window)) and (
            module.up.shape[:2] == (out, module.rank)
        )
    pointwise = set(window) <= {1}
    downs = {(module.rank, width, *window)}
    if pointwise:
        downs |= {(module.rank, width), (module.rank, width, 1, 1)}
    return module.down.shape in downs and module.up.shape[:2] == (out, module.rank)


def _path(name: str, spec: BaseModelSpec) -> str | None:
    if name in spec.modules:
        return name
    if is_text_encoder(name):
        # Known by its name alone where the base model was read from a UNet.
        # What transformers read their texts with are many more than CLIP's encoders.
        known = is_layer_of_text_encoder(name) or bool(spec.layer_names.components)
        return name if known and not _knows(name, spec) else None
    if "/" in name:
        return spec.by_flax_name.get(name)
    if name.startswith(KOHYA_UNET):
        return spec.by_flat_name.get(name.removeprefix(KOHYA_UNET))
    return None


def _resolved(
    companions: Sequence[Companion], spec: BaseModelSpec, origin: str
) -> tuple[Companion, ...]:
    """With the paths of their layers; what is there twice, once."""
    names = layer_by_flat_name(spec)
    found: dict[tuple[str, str], Companion] = {}
    for companion in companions:
        path = _layer(companion.path, names)
        # Of whole layers and of tensors without effect a layer may have several.
        added = companion.part in {"bias", "weight"}
        known = found.setdefault(
            (path, companion.part if added else companion.key), replace(companion, path=path)
        )
        if not np.array_equal(known.array, companion.array):
            _refuse_second(origin, f"{path}: {companion.part}", companion.key)
    return tuple(found.values())


def _layer(name: str, names: Mapping[str, str]) -> str:
    """Path of a companion's layer; its name where the base model has none: nothing is refused."""
    bare = name.removeprefix(KOHYA_UNET)
    return names.get(bare, name) if bare != name else name


def _knows(path: str, spec: BaseModelSpec) -> bool:
    """Whether `spec` has modules of the component that `path` belongs to."""
    prefix = path.partition(".")[0] + "."
    return any(known.startswith(prefix) for known in spec.modules)


def _require_all(adapter: Adapter, paths: dict[str, str | None], spec: BaseModelSpec) -> None:
    missing = [name for name, path in paths.items() if path is None]
    if not missing:
        return
    total = sum(not is_text_encoder(name) or _knows(name, spec) for name in paths)
    none = len(missing) == total
    first = ", ".join(missing[:3])
    raise AdapterRefused(
        f"{adapter.origin}: {len(missing)}/{total} modules are not in base model {spec.name}, "
        f"first {first}; expected "
        f"{'an adapter for this architecture' if none else 'every module to be there'}; "
        f"name the base model that the adapter was trained on",
        code=Refusal.NO_MATCHING_MODULE if none else Refusal.UNMATCHED_MODULES,
    )


def _require_shapes(adapter: Adapter, paths: Mapping[str, str | None], spec: BaseModelSpec) -> None:
    known = [(p, m) for m in adapter.modules if (p := paths[m.path]) in spec.modules]
    bad = [(path, m) for path, m in known if path and not fits(m, spec.modules[path])]
    if not bad:
        return
    path, module = bad[0]
    shape = spec.modules[path].shape
    up = (shape[0], module.rank, *(1 for _ in shape[2:]))
    raise AdapterRefused(
        f"{adapter.origin}: {path}: found down {module.down.shape} and up "
        f"{module.up.shape}; expected down {(module.rank, *shape[1:])} and up {up} for a weight "
        f"{shape} of base model {spec.name} ({len(bad)}/{len(known)} modules differ); name the "
        f"base model that the adapter was trained on",
        code=Refusal.SHAPE_MISMATCH,
    )


def _require_parts(adapter: Adapter, paths: Mapping[str, str | None], spec: BaseModelSpec) -> None:
    """Check the shapes of other algorithms' tensors."""
    for module in adapter.structured:
        algorithm, path = algorithm_for(module), paths[module.path]
        known = None if path is None else spec.modules.get(path)
        shape = algorithm.matrix_shape(module.parts) if known is None else known.shape
        misfit = None if shape is None else algorithm.misfit(module, shape)
        if misfit is not None:
            raise AdapterRefused(
                f"{adapter.origin}: {path}: found {misfit.found} of {algorithm.title}; expected "
                f"{misfit.expected} of base model {spec.name}; name the base model that the "
                f"adapter was trained on",
                code=Refusal.SHAPE_MISMATCH,
            )


def _same(a: LoraModule | StructuredModule, b: LoraModule | StructuredModule) -> bool:
    if isinstance(a, LoraModule) and isinstance(b, LoraModule):
        # One may stand with an alpha of its own and the other, of the same scale, without.
        return a.scale == b.scale and same_array(a.down, b.down) and same_array(a.up, b.up)
    if isinstance(a, LoraModule) or isinstance(b, LoraModule) or a.alpha != b.alpha:
        return False
    if a.parts.keys() != b.parts.keys():
        return False
    return all(same_array(array, b.parts[name]) for name, array in a.parts.items())
