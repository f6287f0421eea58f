"""Which published base model an adapter was trained on: evidence, candidates, never a guess.

Names and shapes decide. A smaller model's adapter fits the model it was pruned from (all of an
SSD-1B adapter fits SDXL), so that absent modules are evidence, too, but only where the file trains
every module of the roles that it trains at all. What the header says is a hint and no more.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import msgspec

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.header_strings import PROVENANCE
from prolora_jax.adapters.formats.keys import KOHYA_UNET
from prolora_jax.adapters.formats.resolution import fits
from prolora_jax.architectures.clip.table import ENCODERS_OF, TEXT_ENCODERS
from prolora_jax.architectures.identify import published_spec
from prolora_jax.architectures.naming import flat
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.places import place_of
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


@dataclass(frozen=True)
class Candidate:
    """A published model, and how far an adapter looks like its own.

    Attributes:
        architecture: id of the model.
        matched: UNet modules of the adapter that it has, by name and shape.
        total: UNet modules of the adapter.
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
    modules = [m for m in adapter.modules if not m.path.startswith(("text_encoder", "lora_te"))]
    lines = [f"header: {key} = {value} (a hint)" for key, value in _hints(adapter.metadata)]
    if not modules:
        fitting = _by_text_encoder(adapter.modules)
        lines.append("no UNet module: only text encoders, which several base models share")
        verdict = "ambiguous-base" if fitting else "unknown"
        return Detection(verdict, fitting, (), tuple(lines))
    lines += _widths(modules)
    held = (_candidate(modules, architecture) for architecture in CONFIGS)
    found = sorted((c for c in held if c.matched), key=lambda c: (-c.share, not c.complete))
    fitting = [c for c in found if c.matched == c.total]
    complete = [c for c in fitting if c.complete]
    for c in fitting if fitting else found[:2]:
        of_all = f"{c.trained} of its {c.trainable} modules in the roles trained here"
        lines.append(f"{c.architecture}: has {c.matched} of {c.total} modules; trained: {of_all}")
    left = fitting if len(complete) != 1 else complete
    if len(fitting) > 1 and len(complete) == 1:
        lines.append(f"absent modules: the file has all of {complete[0].architecture} and no more")
    elif len(fitting) > 1:
        lines.append("names and shapes fit several models, and no absent module decides")
    verdict = "unknown" if not left else "found" if len(left) == 1 else "ambiguous-base"
    return Detection(verdict, tuple(c.architecture for c in left), tuple(found), tuple(lines))


class WrongBase(AdapterRefused):
    """Raised when an adapter can only belong to another published model than the source."""

    def __init__(self, adapter: Adapter, source: BaseModelSpec, found: str):
        super().__init__(
            f"{adapter.origin}: found {found}; expected one for {source.architecture}, which "
            f"base model {source.name} is. Give the base model that it was trained on, or say "
            f"--assume-base {source.architecture} (of generate --migrate.assume-base, in Python "
            f"assume_base).",
            code=Refusal.WRONG_BASE,
        )


def check_base(
    adapter: Adapter, source: BaseModelSpec, assumed: str | None = None
) -> tuple[str, ...]:
    """Refuse an adapter that can only belong to another published model than the source.

    Args:
        adapter: as parsed, or resolved against the source.
        source: the base model that the user says it was trained on.
        assumed: id of the model to believe in, whatever the file says.

    Returns:
        Flags for the report: what was assumed, or between which models the file leaves a choice.

    Raises:
        WrongBase: it belongs to another model.
    """
    known = source.architecture
    if assumed is not None:
        if known not in (None, assumed):
            raise WrongBase(adapter, source, f"--assume-base {assumed}")
        return (f"assumed-base: {assumed}",)
    if known is None or known == _moved_to(adapter.metadata):
        return ()
    found = detect(adapter)
    if found.architectures and known not in found.architectures:
        evidence = f"an adapter for {' or '.join(found.architectures)} ({found.evidence[-1]})"
        raise WrongBase(adapter, source, evidence)
    if found.verdict == "ambiguous-base" and found.candidates:
        return (f"ambiguous-base: {', '.join(found.architectures)}",)
    return ()


def _moved_to(metadata: Mapping[str, str]) -> str | None:
    """The base model that a migration of ours has moved an adapter to, as its header says.

    Modules cannot tell: what SSD-1B has and SDXL has more of is a part of SDXL's.
    """
    try:
        facts = msgspec.json.decode(metadata.get(PROVENANCE, "{}"))
    except msgspec.DecodeError:
        return None
    return facts.get("architecture") if isinstance(facts, dict) else None


def _hints(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield from ((key, metadata[key]) for key in HINTS if metadata.get(key))


def _widths(modules: list[LoraModule]) -> Iterator[str]:
    ends = ("attn2_to_k", "attn2_to_v")
    widths = {m.down.shape[1] for m in modules if flat(m.path).endswith(ends)}
    if widths:
        yield f"shapes: text embedding of width {', '.join(map(str, sorted(widths)))}"


def _candidate(modules: list[LoraModule], architecture: str) -> Candidate:
    spec = _spec(architecture)
    matched = {
        path
        for module in modules
        if (path := _path(module.path, spec)) is not None and fits(module, spec.modules[path])
    }
    roles = {_role(path) for path in matched}
    trainable = sum(_role_counts(architecture)[role] for role in roles)
    return Candidate(architecture, len(matched), len(modules), len(matched), trainable)


def _path(name: str, spec: BaseModelSpec) -> str | None:
    if name in spec.modules:
        return name
    return spec.by_flat_name.get(name.removeprefix(KOHYA_UNET))


def _role(path: str) -> tuple[str, str]:
    place = place_of(path)
    return ("", path) if place is None else (place.kind, place.role)


@cache
def _role_counts(architecture: str) -> Counter[tuple[str, str]]:
    return Counter(map(_role, _spec(architecture).modules))


@cache
def _spec(architecture: str) -> BaseModelSpec:
    return published_spec(architecture)


def _by_text_encoder(modules: tuple[LoraModule, ...]) -> tuple[str, ...]:
    """Models whose text encoders have the widths of these modules."""
    widths = {
        (module.path.partition(".")[0], module.down.shape[1])
        for module in modules
        if module.path.endswith(("q_proj", "fc1"))
    }
    return tuple(
        architecture
        for architecture, encoders in ENCODERS_OF.items()
        if widths
        and all(c in encoders and TEXT_ENCODERS[encoders[c]].width == w for c, w in widths)
    )
