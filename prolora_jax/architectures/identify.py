"""Which published model a spec is, and the specs of published models."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from prolora_jax.architectures.clip.table import (
    COMPONENTS,
    ENCODERS_OF,
    TEXT_ENCODERS,
    text_encoder_table,
)
from prolora_jax.architectures.dit.published import DITS, dit_modules
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS, DIT_SURROUNDINGS
from prolora_jax.architectures.likeness import Families, Likeness
from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.placement import placements
from prolora_jax.architectures.recognition import modules_of, spec_from_shapes
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.architectures.unet.family import UNET_SURROUNDINGS
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import UNetTensors, unet_table

Shapes = frozenset[tuple[str, tuple[int, ...]]]

ARCHITECTURES = (*CONFIGS, *DITS)
"""Ids of all published models that are known here."""


def identified(spec: BaseModelSpec) -> BaseModelSpec:
    """The same modules, with `family`, `differences` and `text_encoders` filled in.

    Args:
        spec: modules as a checkpoint's header has them.

    Returns:
        A spec whose family is the published UNet with exactly these blocks, and its differences
        from that; none where no published UNet has them, or where several are equally near, which
        the differences name then. Its text encoders are those that the family uses; for an unknown
        UNet, and one that takes its text another way, the known ones among those whose modules are
        in `spec`. Of a diffusion transformer several published ones may have the blocks, as what
        takes other pictures was made from FLUX.1 dev: the first of those that are equally near is
        what the others were made from. It is an architecture and no checkpoint: see `lookalikes`.
    """
    if any(spec.component(component) for component in DIT_COMPONENTS):
        like = _transformer(spec)
        known = (None, ()) if like is None else (like.family, like.differences)
        family, differences = known
        encoders = _encoders_at_hand(spec)
        return replace(spec, family=family, differences=differences, text_encoders=encoders)
    near = _families().nearest(_unet(spec))
    if len(near) != 1:
        choice = " and to ".join(likeness.family for likeness in near)
        differences = (f"equally near to {choice}",) if near else ()
        return replace(
            spec, family=None, differences=differences, text_encoders=_encoders_at_hand(spec)
        )
    (likeness,) = near
    encoders = (
        tuple(ENCODERS_OF[likeness.family].values())
        if likeness.same_text
        else _encoders_at_hand(spec)
    )
    return replace(
        spec,
        family=likeness.family,
        differences=likeness.differences,
        text_encoders=encoders,
    )


def published_spec(architecture: str, *, text_encoders: bool = False) -> BaseModelSpec:
    """The spec of a published model, without a checkpoint.

    Args:
        architecture: id in `ARCHITECTURES`; the spec's name, too.
        text_encoders: whether its text encoders' modules are in it; of a UNet's alone.

    Returns:
        What `io.checkpoint` finds in that model's files.

    Raises:
        KeyError: there is no such architecture.
    """
    if architecture in DITS:
        modules = dit_modules(architecture)
        named = {f"{DIT_COMPONENTS[0]}.{name}": shape for name, shape in modules.items()}
        found = {path: ModuleSpec(path, named[path]) for path in sorted(named)}
        return replace(BaseModelSpec(architecture, found), family=architecture)
    tensors = {f"unet.{key}": shape for key, shape in unet_table(CONFIGS[architecture]).items()}
    for component, encoder in ENCODERS_OF[architecture].items() if text_encoders else ():
        table = text_encoder_table(TEXT_ENCODERS[encoder])
        tensors |= {f"{component}.{key}": shape for key, shape in table.items()}
    return identified(spec_from_shapes(tensors, name=architecture))


def lookalikes(spec: BaseModelSpec) -> str | None:
    """What to say of a diffusion transformer that was identified by its shapes; None of others.

    Equal shapes do not name a checkpoint: Krea's and Kontext's are those of FLUX.1 dev.
    """
    table = DITS.get(spec.architecture or "")
    if table is None:
        return None
    others = f", as are {', '.join(table.same)}" if table.same else ""
    return (
        f"{spec.name}: {spec.family} by the shapes of its modules{others}; shapes do not tell a "
        f"model from what was tuned, edited or distilled from it"
    )


def spec_from_config(config: UNetTensors, *, name: str) -> BaseModelSpec:
    """The modules of the UNet that `config` describes."""
    return spec_from_shapes(unet_table(config), name=name)


def _transformer(spec: BaseModelSpec) -> Likeness | None:
    """The published transformer that the first one of a model is, or is like."""
    component = next(name for name in DIT_COMPONENTS if spec.component(name))
    paths = spec.component(component)
    shapes = {path.removeprefix(f"{component}."): spec.modules[path].shape for path in paths}
    return next(iter(_transformers().nearest(shapes)), None)


def _encoders_at_hand(spec: BaseModelSpec) -> tuple[str, ...]:
    found = (_encoders().get(_shapes_of(spec, component)) for component in COMPONENTS)
    return tuple(encoder for encoder in found if encoder is not None)


@cache
def _families() -> Families:
    specs = {
        name: spec_from_shapes(unet_table(config), name=name) for name, config in CONFIGS.items()
    }
    return Families({name: _unet(spec) for name, spec in specs.items()}, UNET_SURROUNDINGS)


@cache
def _transformers() -> Families:
    return Families({name: dit_modules(name) for name in DITS}, DIT_SURROUNDINGS)


def _unet(spec: BaseModelSpec) -> dict[str, tuple[int, ...]]:
    """Shape by path without component of the UNet's modules."""
    return {
        path.removeprefix(UNET): module.shape
        for path, module in spec.modules.items()
        if path.startswith(UNET)
    }


@cache
def _encoders() -> Mapping[Shapes, str]:
    known = {}
    for name, config in TEXT_ENCODERS.items():
        # With and without its projection: pipelines use the same tower either way.
        for projection in {config.projection, None}:
            table = text_encoder_table(replace(config, projection=projection))
            tensors = {f"text_encoder.{key}": shape for key, shape in table.items()}
            spec = BaseModelSpec(name, modules_of(placements(tensors)))
            known[_shapes_of(spec, "text_encoder")] = name
    return known


def _shapes_of(spec: BaseModelSpec, component: str) -> Shapes:
    """Names and shapes of one component's modules, without the component's own name."""
    return frozenset(
        (path.partition(".")[2], spec.modules[path].shape) for path in spec.component(component)
    )
