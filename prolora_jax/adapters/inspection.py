"""What an adapter file is, as a record: for `prolora inspect` and for catalogs."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.detection import Detection, detect
from prolora_jax.adapters.formats.trees import unscaled
from prolora_jax.architectures.dit.spellings import is_transformer_name, said_component
from prolora_jax.architectures.identify import lookalikes
from prolora_jax.architectures.llm.layouts import is_embedding
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import Part, tree
from prolora_jax.errors import ProloraError

Naming = Literal["diffusers", "original"]


@dataclass(frozen=True)
class LanguageModel:
    """A language model as people ask for it.

    Attributes:
        family: what its configuration calls it; None without one.
        layers: how many it has.
        width: of its embedding; None without one.
        vocabulary: rows of its embedding, padding included; None without one.
        modules: linear layers, experts one by one.
        packings: number of weights by packing; empty where none is packed.
    """

    family: str | None
    layers: int
    width: int | None
    vocabulary: int | None
    modules: int
    packings: dict[str, int]


@dataclass(frozen=True)
class StackOfBlocks:
    """A stack of a network.

    Attributes:
        name: with component, `transformer.single_transformer_blocks`.
        parts: how many it has.
        widths: what most layers of a part take or give; one number where it is that of all parts.
    """

    name: str
    parts: int
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A UNet or diffusion transformers as people ask for them.

    Attributes:
        architecture: id of the published model that it is to the last layer; None of others.
        family: id of the published model whose blocks it has; None of others.
        differences: from that, in words.
        lookalikes: which other checkpoints have its shapes, in a sentence; None where none are
            known.
        naming: `diffusers`, or `original` of a file that names a layer as the authors do.
        stacks: its stacks, as the network runs through them.
        packings: number of weights by packing; empty where none is packed.
    """

    architecture: str | None
    family: str | None
    differences: tuple[str, ...]
    lookalikes: str | None
    naming: Naming
    stacks: tuple[StackOfBlocks, ...]
    packings: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """Facts about one file.

    Attributes:
        path: the file.
        verdict: `ok`, `refused`, or `base-model` of what is no adapter but a base model.
        reason: code of the refusal.
        message: the refusal in words.
        format: key convention.
        modules: number of modules.
        ranks: number of modules by rank.
        dtypes: number of modules by dtype.
        alpha: number of modules with an alpha.
        scales: smallest and largest scale, of those that are known.
        components: number of modules by component (`unet`, `text_encoder`, ...).
        norm: Frobenius norm of all updates together; None where the base model decides a scale.
        zero: modules whose update is zero.
        extras: tensors that are carried along.
        metadata: header strings that say what it was trained on.
        base: which published base models it can belong to, and why; None for a refused file.
        companions: tensors beside the pairs that no projection moves, by what they are.
        flags: what had to be decided to read it, such as where its scale comes from.
        algorithms: number of modules by algorithm, of those that are no plain LoRA; ranks, scales
            and norm are of the others.
        base_model: what is known of the base model that it is, or, of a language model, is for.
    """

    path: str
    verdict: str
    reason: str | None = None
    message: str | None = None
    format: str | None = None
    modules: int = 0
    ranks: dict[int, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    alpha: int = 0
    scales: tuple[float, float] | None = None
    components: dict[str, int] = field(default_factory=dict)
    norm: float | None = 0.0
    zero: int = 0
    extras: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    base: Detection | None = None
    companions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    algorithms: dict[str, int] = field(default_factory=dict)
    base_model: LanguageModel | Network | None = None


TRAINED_ON = (
    "ss_base_model_version",
    "ss_sd_model_name",
    "modelspec.architecture",
    "modelspec.title",
    "ss_network_module",
)
"""Header strings that hint at the base model; hints only, shapes and names decide."""


UNSCALED = (
    "scale-by-base: the scale of q depends on how many heads the base model has, and with it the "
    "norm; name it (--source)"
)


def inspect_adapter(adapter: Adapter, path: str) -> Inspection:
    """Facts about a file that could be read."""
    every = (*adapter.modules, *adapter.structured)
    norms = [module.norm for module in adapter.modules]
    unknown = unscaled(adapter)
    scales = [module.scale for module in adapter.modules if module.path not in unknown]
    return Inspection(
        path=path,
        verdict="ok",
        format=adapter.format,
        modules=len(every),
        ranks=dict(sorted(Counter(m.rank for m in adapter.modules).items())),
        dtypes=dict(Counter(m.dtype.name for m in every)),
        alpha=sum(m.alpha is not None for m in every),
        scales=(min(scales), max(scales)) if scales else None,
        components=dict(Counter(_component(m.path) for m in every)),
        norm=None if unknown else float(np.linalg.norm(norms)),
        zero=sum(norm == 0.0 for norm in norms),
        extras=tuple(sorted(adapter.extras)),
        metadata={key: adapter.metadata[key] for key in TRAINED_ON if key in adapter.metadata},
        base=detect(adapter),
        companions={
            part: tuple(sorted(c.key for c in adapter.companions if c.part == part))
            for part in sorted({c.part for c in adapter.companions})
        },
        flags=(*adapter.flags, *((UNSCALED,) if unknown else ())),
        algorithms=dict(sorted(Counter(m.algorithm for m in adapter.structured).items())),
    )


def language_model(spec: BaseModelSpec) -> LanguageModel | None:
    """What a base model is, as far as it is a language model; None of others."""
    paths = spec.component("lm")
    if not paths:
        return None
    part = tree(paths).get("lm")
    layers = sum(len(parts) for parts in part.stacks.values()) if part is not None else 0
    embedding = next((spec.modules[path].shape for path in paths if is_embedding(path)), None)
    vocabulary, width = (None, None) if embedding is None else embedding
    family = None if spec.facts is None else spec.facts.family
    modules = sum(not is_embedding(path) for path in paths)
    return LanguageModel(family, layers, width, vocabulary, modules, dict(spec.packings))


def network(spec: BaseModelSpec, naming: Naming) -> Network:
    """What a base model is, as far as it is a UNet or diffusion transformers.

    Args:
        spec: the base model.
        naming: whose names its file has.
    """
    stacks = []
    for part in tree(spec.modules).values():
        for stack, inside in part.stacks.items():
            widths = tuple(_width(one, spec) for one in inside.values())
            widths = widths[:1] if len(set(widths)) == 1 else widths
            stacks.append(StackOfBlocks(f"{part.path}.{stack.name}", len(inside), widths))
    said = spec.architecture, spec.family, spec.differences, lookalikes(spec)
    return Network(*said, naming, tuple(stacks), dict(spec.packings))


def _width(part: Part, spec: BaseModelSpec) -> int:
    sides = (side for path in part.paths() for side in spec.modules[path].shape[:2])
    return Counter(sides).most_common(1)[0][0]


def inspect_base(spec: BaseModelSpec, path: str, naming: Naming) -> Inspection:
    """The record of a base model where an adapter was expected.

    Args:
        spec: the base model.
        path: of its file or folder.
        naming: whose names its file has.
    """
    found = language_model(spec) or network(spec, naming)
    components = dict(Counter(_component(path) for path in spec.modules))
    return Inspection(
        path,
        "base-model",
        message=f"{path}: a base model, not an adapter",
        modules=len(spec.modules),
        components=components,
        base_model=found,
    )


def refused(path: str, error: ProloraError) -> Inspection:
    """The record of a file that could not be used."""
    return Inspection(path=path, verdict="refused", reason=str(error.code), message=str(error))


def _component(path: str) -> str:
    if is_transformer_name(path):
        return said_component(path) or "transformer"
    if path.startswith(("lora_unet_", "unet.", "unet/")):
        return "unet"
    return path.split(".", 1)[0]
