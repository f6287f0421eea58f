"""The scale that peft and diffusers keep beside the tensors, in a LoraConfig as JSON.

Diffusers writes it into the header under `lora_adapter_metadata`: a pipeline with its fields
prefixed by component (`unet.lora_alpha`), a bare UNet without. Where it is missing the scale of
such a file is 1.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from prolora_jax.adapters.formats.config_fields import READ_KINDS, kind_of, require_plain
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.architectures.llm.names import LM, name_inside, names_around
from prolora_jax.architectures.naming import WRAPPERS
from prolora_jax.errors import AdapterRefused, Refusal

HEADER_KEY = "lora_adapter_metadata"
_KEPT = ("ensure_weight_tying", "target_parameters", "peft_version")
_OF_SAVED = ("modules_to_save", "task_type")
_MOST_PATTERNS, _MOST_COSTLY = 4_000, 50
"""Each is tried on each module: 4,000 plain ones take seconds, one with repeats as long as many."""
_WHOLE_PATHS = re.compile(r"\^\((?:\w|\\\.|\|)+\)")
_FLAT = "lora_"
"""What flat names start with, which have no configuration: a network may have `x_embedder`."""
_REPEAT = re.compile(r"[*+?{]")
_REPEATED_GROUP = re.compile(r"\)[*+?{]|\\\d")
# A level of `WRAPPERS` in a pattern, with the dot that parts it from the next: plain or escaped,
# behind a start, a dot, a bracket or a repeat.
_ANY_WRAPPER = rf"(?:{'|'.join(WRAPPERS)})"
_WRAPPER_LEVEL = re.compile(
    rf"(?:(?<![^.(|^:*+?}}])){_ANY_WRAPPER}\\?\.(?![*+?{{])|\\?\.{_ANY_WRAPPER}(?=[)|$]|\Z)"
)

_Patterns = Sequence[tuple[Callable[[str], object], Any]]
"""What a pattern says, by whether it fits a module."""


class _Config(NamedTuple):
    """The LoraConfig of one component, with its alpha patterns ready for use."""

    fields: Mapping[str, Any]
    alphas: _Patterns


def alpha_by_config(path: str, rank: int, metadata: Mapping[str, str], origin: str) -> float | None:
    """The alpha that a file's configuration gives one module.

    Args:
        path: dotted module path with component.
        rank: rank of the module's factors.
        metadata: header strings of the file.
        origin: the file, for messages.

    Returns:
        The alpha, such that the scale is `alpha / rank`; None if the file has no configuration
        for the component.

    Raises:
        AdapterRefused: the configuration cannot be read, its factors belong to a base weight
            that the initialisation has changed, or it is not one of plain LoRA.
    """
    text = metadata.get(HEADER_KEY)
    if text is None or path.startswith(_FLAT):
        return None
    return _require_alpha(text, path, rank, origin)


def _require_alpha(text: str, path: str, rank: int, origin: str) -> float | None:
    component, _, module = path.partition(".")
    try:
        alpha = _alpha(_config(text, component, origin), _names(path), rank)
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as failure:
        raise _unreadable(origin, str(failure)) from failure
    if alpha is not None and not math.isfinite(alpha):
        raise _unreadable(origin, f"alpha {alpha} of {path}")
    return alpha


def rank_by_config(path: str, metadata: Mapping[str, str], origin: str) -> int:
    """The rank that a file's configuration gives one module, whose tensors do not say one.

    Args:
        path: dotted module path with component.
        metadata: header strings of the file, a configuration among them.
        origin: the file, for messages.

    Raises:
        AdapterRefused: the configuration cannot be used, or gives no rank.
    """
    return _require_rank(metadata[HEADER_KEY], path, origin)


def _require_rank(text: str, path: str, origin: str) -> int:
    component, names = path.partition(".")[0], _names(path)
    try:
        ranks, default = _ranks(text, component, origin)
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as failure:
        raise _unreadable(origin, str(failure)) from failure
    rank = next((value for fits, value in ranks if any(map(fits, names))), default)
    if isinstance(rank, int) and not isinstance(rank, bool) and rank > 0:
        return rank
    raise _unreadable(origin, f"r {rank!r} of {path}")


def settings_of(path: str, metadata: Mapping[str, str], origin: str) -> Mapping[str, Any]:
    """The fields of a file's configuration for the component of a module.

    Raises:
        AdapterRefused: the configuration cannot be used.
    """
    text = metadata.get(HEADER_KEY)
    if text is None or path.startswith(_FLAT):
        return {}
    return _usable(text, path.partition(".")[0], origin).fields


def require_same_kind(
    path: str, algorithm: str | None, metadata: Mapping[str, str], origin: str
) -> None:
    """Refuse a module whose tensors are not those that the file's configuration says.

    Args:
        path: of the module.
        algorithm: that its tensors are of; None for plain LoRA.
        metadata: header strings of the file.
        origin: the file, for messages.

    Raises:
        AdapterRefused: they differ, or the configuration cannot be used.
    """
    fields = settings_of(path, metadata, origin)
    wanted = READ_KINDS[kind_of(fields)]
    if wanted == "lora":
        lacking = algorithm is None and bool(fields.get("use_dora"))
        wanted, right = "DoRA: use_dora" if lacking else wanted, not lacking
    else:
        right = wanted == algorithm
    if not right:
        raise AdapterRefused(
            f"{origin}: {path}: found tensors of {algorithm or 'plain LoRA'}, and a configuration "
            f"that says {wanted}; expected the tensors of that; fetch the file again",
            code=Refusal.INCOMPLETE_PAIR,
        )


def _usable(text: str, component: str, origin: str) -> _Config:
    try:
        return _config(text, component, origin)
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as failure:
        raise _unreadable(origin, str(failure)) from failure


def base_name(metadata: Mapping[str, str]) -> str | None:
    """What a file's configuration says its base model is called, if it has one and says it."""
    found = _said(metadata).items()
    names = [value for key, value in found if key.endswith("base_model_name_or_path")]
    return next((name for name in names if isinstance(name, str)), None)


def kept_fields(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What an output's configuration says as the input's did: how tensors are to be taken."""
    found = {name: value for name, value in _said(metadata).items() if name in _KEPT and value}
    if "target_parameters" not in found:  # whose pairs alone depend on it
        found.pop("peft_version", None)
    return found


def saved_fields_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a configuration says of whole layers, and for which task they are, where it does."""
    return {name: value for name, value in _said(metadata).items() if name in _OF_SAVED and value}


def _said(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        fields = json.loads(metadata.get(HEADER_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _names(path: str) -> tuple[str, ...]:
    """What patterns may call a module: without its component, as a parameter, or as in the file.

    Parsing gives some names a component and a level that the network of the file has not.
    """
    module = path.partition(".")[2]
    around = (*names_around(module), name_inside(module, "")) if path.startswith(LM) else ()
    return module, f"{module}.weight", path, module.removeprefix("model."), *around


def _alpha(config: _Config, names: Sequence[str], rank: int) -> float | None:
    alpha = config.fields.get("lora_alpha", config.fields.get("alpha"))
    alpha = next((value for fits, value in config.alphas if any(map(fits, names))), alpha)
    if alpha is None:
        return None
    # Rank-stabilised LoRA scales by alpha / sqrt(rank).
    return float(alpha) * rank**0.5 if config.fields.get("use_rslora") else float(alpha)


@lru_cache(maxsize=8)
def _config(text: str, component: str, origin: str) -> _Config:
    fields = _read(text, origin)
    if not {"lora_alpha", "alpha", "peft_type"} & fields.keys():
        fields = _of_component(fields, component)
    require_plain(fields, origin)
    return _Config(fields, _patterns(fields, "alpha_pattern"))


def _of_component(fields: Mapping[str, Any], component: str) -> Mapping[str, Any]:
    """A component's fields; of a name that says none, those of the one transformer there is."""
    found = _below(fields, component)
    if found or component in DIT_COMPONENTS or is_text_encoder(component):
        return found
    told = [one for name in DIT_COMPONENTS if (one := _below(fields, name))]
    if len(told) > 1:
        raise ValueError("fields of two transformers, and names that do not say which they are of")
    return told[0] if told else {}


def _below(fields: Mapping[str, Any], component: str) -> Mapping[str, Any]:
    prefix = f"{component}."
    return {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}


@lru_cache(maxsize=8)
def _ranks(text: str, component: str, origin: str) -> tuple[_Patterns, Any]:
    fields = _config(text, component, origin).fields
    return _patterns(fields, "rank_pattern"), fields.get("r")


def _patterns(fields: Mapping[str, Any], name: str) -> _Patterns:
    patterns = (fields.get(name) or {}).items()
    costly = sum(_REPEAT.search(pattern) is not None for pattern, _ in patterns)
    if len(patterns) > _MOST_PATTERNS or costly > _MOST_COSTLY:
        raise ValueError(f"{len(patterns)} patterns, {costly} of them with repeats")
    return [(_matcher(pattern), value) for pattern, value in patterns]


def _matcher(pattern: str) -> Callable[[str], object]:
    """Whether a pattern fits a module path, by peft's rule: its end, from any dot on."""
    pattern = _WRAPPER_LEVEL.sub("", pattern)  # as in the keys that it is for
    if _WHOLE_PATHS.fullmatch(pattern):  # as `peft.configuration` writes them: hundreds in one
        return frozenset(pattern[2:-1].replace("\\.", ".").split("|")).__contains__
    return re.compile(rf"(.*\.)?({_simple(pattern)})$").match


def _simple(pattern: str) -> str:
    """The pattern, if matching it cannot take for ever: the file's author chose it."""
    repeats, groups = len(_REPEAT.findall(pattern)), pattern.count("(")
    if len(pattern) > 500 or repeats > 2 or groups > 2 or _REPEATED_GROUP.search(pattern):
        raise ValueError(f"a pattern that may take for ever, {pattern[:100]!r}")
    return pattern


@lru_cache(maxsize=8)
def _read(text: str, origin: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise _unreadable(origin, "no JSON object")
    return config


def _unreadable(origin: str, found: str) -> AdapterRefused:
    return AdapterRefused(
        f"{origin}: {HEADER_KEY} (or adapter_config.json) cannot be used: found {found}; "
        f"expected the LoraConfig that gives the scale; remove it if the scale is 1",
        code=Refusal.UNKNOWN_KEYS,
    )
