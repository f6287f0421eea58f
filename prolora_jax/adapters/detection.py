"""Which published base model an adapter was trained on: evidence, candidates, never a guess.

Names and shapes decide. A smaller model's adapter fits the model it was pruned from (all of an
SSD-1B adapter fits SDXL), so that absent modules are evidence, too, but only where the file trains
every module of the roles that it trains at all. What the header says is a hint and no more.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import msgspec

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.algorithms.factoring import sketches
from prolora_jax.adapters.formats.header_strings import PROVENANCE
from prolora_jax.adapters.formats.keys import KOHYA_UNET
from prolora_jax.adapters.formats.lora_config import base_name
from prolora_jax.adapters.formats.resolution import fits
from prolora_jax.adapters.transformer_evidence import (
    held_by_transformers,
    other_checkpoint,
    same_shapes,
)
from prolora_jax.architectures.clip.table import ENCODERS_OF, TEXT_ENCODERS
from prolora_jax.architectures.dit.spellings import is_transformer_name
from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.naming import UNET, flat
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec
from prolora_jax.architectures.stacks import place_of
from prolora_jax.architectures.unet.family import ADDED
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.errors import AdapterRefused, Refusal

HINTS = (
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_v2",
    "modelspec.architecture",
    "base_model_name_or_path",
)
"""Header strings that name a base model."""

# Beside the blocks, where a UNet may differ from its family; flat, in both spellings.
_BESIDE_BLOCKS = (
    *("conv_in", "conv_out", "time_embedding", "add_embedding", "class_embedding"),
    *("encoder_hid_proj", "position_net"),
    *("input_blocks_0_0", "out_2", "time_embed", "label_emb"),
)


@dataclass(frozen=True)
class Candidate:
    """A published model, and how far an adapter looks like its own.

    Attributes:
        architecture: id of the model.
        matched: UNet modules of the adapter that it has, by name and shape.
        total: UNet modules of the adapter, without those in places where models of one family
            differ, if no published model has them.
        trained: of the model's modules in the roles that the adapter trains, the adapter's number.
        trainable: number of the model's modules in those roles.
    """

    architecture: str
    matched: int
    total: int
    trained: int
    trainable: int

    @property
    def share(self) -> float:
        """Share of the adapter's modules that the model has."""
        return self.matched / self.total if self.total else 0.0

    @property
    def complete(self) -> bool:
        """Whether the adapter trains all of the model's modules in its roles."""
        return self.matched == self.total and self.trained == self.trainable > 0


@dataclass(frozen=True)
class Detection:
    """What a file says about its base model.

    Attributes:
        verdict: `found`; `ambiguous-base`; or `unknown`, when no published model has all modules.
        architectures: ids of the models that the evidence leaves.
        candidates: models that have at least one of the modules, best first.
        evidence: in words, line by line.
    """

    verdict: Literal["found", "ambiguous-base", "unknown"]
    architectures: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    evidence: tuple[str, ...]


def detect(adapter: Adapter) -> Detection:
    """Hold an adapter against every published model.

    Args:
        adapter: as parsed, or resolved.

    Returns:
        The candidates and the evidence; text encoders decide only where there is nothing else.
    """
    every = (*adapter.modules, *sketches(adapter))
    modules = [m for m in every if not m.path.startswith(("text_encoder", "lora_te"))]
    lines = [f"header: {key} = {value} (a hint)" for key, value in _hints(adapter.metadata)]
    if not modules:
        fitting = _by_text_encoder(every)
        lines.append("no UNet module: only text encoders, which several base models share")
        verdict = "ambiguous-base" if fitting else "unknown"
        return Detection(verdict, fitting, (), tuple(lines))
    lines += _widths(modules)
    of_transformer = any(is_transformer_name(module.path) for module in modules)
    held = held_by_transformers(modules) if of_transformer else _held(modules)
    strays = [] if of_transformer else _strays(modules, held)
    if strays:
        more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
        lines.append(f"as in no published model, and left out: {strays[0]}{more}")
    found = _candidates(held, len(modules) - len(strays))
    fitting = [c for c in found if c.matched == c.total]
    complete = [c for c in fitting if c.complete]
    for c in fitting if fitting else found[:2]:
        of_all = f"{c.trained} of its {c.trainable} modules in the roles trained here"
        lines.append(f"{c.architecture}: has {c.matched} of {c.total} modules; trained: {of_all}")
    # Of transformers several have the very same blocks, and differ in what stands around them.
    decides = len(complete) == 1 or (of_transformer and 0 < len(complete) < len(fitting))
    left = complete if decides else fitting
    lines += filter(None, (same_shapes(c.architecture) for c in left))
    if len(fitting) > 1 and decides:
        names = " and of ".join(c.architecture for c in complete)
        lines.append(f"absent modules: the file has all of {names} and no more")
    elif len(fitting) > 1:
        lines.append("names and shapes fit several models, and no absent module decides")
    verdict = "unknown" if not left else "found" if len(left) == 1 else "ambiguous-base"
    return Detection(verdict, tuple(c.architecture for c in left), tuple(found), tuple(lines))


class WrongBase(AdapterRefused):
    """Raised when an adapter can only belong to another published model than the source."""

    def __init__(self, adapter: Adapter, source: BaseModelSpec, found: str):
        family, apart = source.family, "; ".join(source.differences)
        super().__init__(
            f"{adapter.origin}: found {found}; expected one for {family}, which base model "
            f"{source.name} is{f', apart from: {apart}' if apart else ''}. Give the base model "
            f"that it was trained on, or say --assume-base {family} (of generate "
            f"--migrate.assume-base, in Python assume_base).",
            code=Refusal.WRONG_BASE,
        )


def check_base(
    adapter: Adapter, source: BaseModelSpec, assumed: str | None = None
) -> tuple[str, ...]:
    """Refuse an adapter that can only belong to another published model than the source's family.

    Args:
        adapter: as parsed, or resolved against the source.
        source: the base model that the user says it was trained on.
        assumed: id of the model to believe in, whatever the file says.

    Returns:
        Flags for the report: what was assumed, between which models the file leaves a choice, or
        which other checkpoint of the same shapes its header says.

    Raises:
        WrongBase: it belongs to another model.
    """
    known = source.family
    if assumed is not None:
        if known not in (None, assumed):
            raise WrongBase(adapter, source, f"--assume-base {assumed}")
        return (f"assumed-base: {assumed}",)
    said = other_checkpoint(adapter.metadata, source)
    if known is None or known == moved_to(adapter.metadata):
        return said
    found = detect(adapter)
    if found.architectures and known not in found.architectures:
        evidence = f"an adapter for {' or '.join(found.architectures)} ({found.evidence[-1]})"
        raise WrongBase(adapter, source, evidence)
    if found.verdict == "ambiguous-base" and found.candidates:
        return (f"ambiguous-base: {', '.join(found.architectures)}", *said)
    return said


def moved_to(metadata: Mapping[str, str]) -> str | None:
    """The family that a migration of ours has moved an adapter to, as its header says.

    Modules cannot tell: what SSD-1B has and SDXL has more of is a part of SDXL's.

    Args:
        metadata: header strings of a file.
    """
    try:
        facts = msgspec.json.decode(metadata.get(PROVENANCE, "{}"))
    except msgspec.DecodeError:
        return None
    return facts.get("architecture") if isinstance(facts, dict) else None


def _hints(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield from ((key, metadata[key]) for key in HINTS if metadata.get(key))
    name = base_name(metadata)
    if name and not metadata.get("base_model_name_or_path"):
        yield "base_model_name_or_path", name


def _widths(modules: list[LoraModule]) -> Iterator[str]:
    ends = ("attn2_to_k", "attn2_to_v")
    widths = {m.weight_shape[1] for m in modules if flat(m.path).endswith(ends)}
    if widths:
        yield f"shapes: text embedding of width {', '.join(map(str, sorted(widths)))}"


def _held(modules: list[LoraModule]) -> dict[str, dict[str, str]]:
    """Path in each published model, by name in the file, of the modules that it has."""
    held: dict[str, dict[str, str]] = {architecture: {} for architecture in CONFIGS}
    for module in modules:
        for known in _under(module.path):
            if fits(module, known.module):
                for architecture, path in known.places:
                    held[architecture][module.path] = path
    return held


def _strays(modules: list[LoraModule], held: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Modules that no published model has, in places where a model may differ from its family.

    What was trained on such a model says nothing against its family.
    """
    known = {name for names in held.values() for name in names}
    return [m.path for m in modules if m.path not in known and _may_differ(m.path)]


def _may_differ(name: str) -> bool:
    inner = flat(name.removeprefix(UNET).removeprefix(KOHYA_UNET))
    beside = (inner == place or inner.startswith(f"{place}_") for place in _BESIDE_BLOCKS)
    return any(beside) or any(f"_{level}_" in inner for level in ADDED)


def _candidates(held: Mapping[str, Mapping[str, str]], total: int) -> list[Candidate]:
    """The models that have at least one module, best first."""
    found = []
    for architecture, paths in held.items():
        trained = set(paths.values())
        roles = {_role(path) for path in trained}
        trainable = sum(_role_counts(architecture)[role] for role in roles)
        found.append(Candidate(architecture, len(paths), total, len(trained), trainable))
    return sorted((c for c in found if c.matched), key=lambda c: (-c.share, not c.complete))


def _role(path: str) -> tuple[tuple[str, ...], str]:
    place = place_of(path)
    return ((), path) if place is None else (place.kind, place.role)


@cache
def _role_counts(architecture: str) -> Counter[tuple[tuple[str, ...], str]]:
    return Counter(map(_role, _spec(architecture).modules))


class _Published(NamedTuple):
    """A module that published models have under one name in one shape, and (model, path)."""

    module: ModuleSpec
    places: list[tuple[str, str]]


def _under(name: str) -> Iterable[_Published]:
    """What published models have under a name in a file, each shape once."""
    if name.startswith(UNET):
        return _index("path").get(name, {}).values()
    return _index("flat").get(name.removeprefix(KOHYA_UNET), {}).values()


@cache
def _index(spelling: Literal["path", "flat"]) -> dict[str, dict[tuple[int, ...], _Published]]:
    """What published models have, by name and then by shape: most have a name in one and the same.

    Together, so that a module is not compared once for every model.
    """
    index: dict[str, dict[tuple[int, ...], _Published]] = {}
    for architecture in CONFIGS:
        spec = _spec(architecture)
        names = spec.by_flat_name if spelling == "flat" else {path: path for path in spec.modules}
        for name, path in names.items():
            module = spec.modules[path]
            shapes = index.setdefault(name, {})
            known = shapes.get(module.shape)
            if known is None:
                known = shapes[module.shape] = _Published(module, [])
            known.places.append((architecture, path))
    return index


@cache
def _spec(architecture: str) -> BaseModelSpec:
    return published_spec(architecture)


def _by_text_encoder(modules: tuple[LoraModule, ...]) -> tuple[str, ...]:
    """Models whose text encoders have the widths of these modules."""
    widths = {
        (module.path.partition(".")[0], module.weight_shape[1])
        for module in modules
        if module.path.endswith(("q_proj", "fc1"))
    }
    return tuple(
        architecture
        for architecture, encoders in ENCODERS_OF.items()
        if widths
        and all(c in encoders and TEXT_ENCODERS[encoders[c]].width == w for c, w in widths)
    )
