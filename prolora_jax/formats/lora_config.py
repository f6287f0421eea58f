"""The scale that peft and diffusers keep beside the tensors, in a LoraConfig as JSON.

Diffusers writes it into the header under `lora_adapter_metadata`: a pipeline with its fields
prefixed by component (`unet.lora_alpha`), a bare UNet without. Where it is missing the scale of
such a file is 1.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from prolora_jax.errors import AdapterRefused, Refusal

HEADER_KEY = "lora_adapter_metadata"
_REPEAT = re.compile(r"[*+?{]")
_REPEATED_GROUP = re.compile(r"\)[*+?{]|\\\d")
# Initialisations that also change the base weight: the factors alone are not the update.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


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
        AdapterRefused: the configuration cannot be read, or its factors belong to a base weight
            that the initialisation has changed.
    """
    text = metadata.get(HEADER_KEY)
    component, _, module = path.partition(".")
    if text is None or not module:
        return None
    config = _read(text, origin)
    fields = config
    if "lora_alpha" not in config:
        prefix = f"{component}."
        fields = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise AdapterRefused(
            f"{origin}: unsupported-algorithm:{start}: its initialisation changed the base "
            f"weights, so the factors alone are not the update; expected plain LoRA; convert it "
            f"with peft's path_initial_model_for_weight_conversion",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )
    return _require_alpha(fields, path, rank, origin)


def _require_alpha(fields: Mapping[str, Any], path: str, rank: int, origin: str) -> float | None:
    try:
        alpha = _alpha(fields, path.partition(".")[2], rank)
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as failure:
        raise _unreadable(origin, str(failure)) from failure
    if alpha is not None and not math.isfinite(alpha):
        raise _unreadable(origin, f"alpha {alpha} of {path}")
    return alpha


def _alpha(fields: Mapping[str, Any], module: str, rank: int) -> float | None:
    alpha = fields.get("lora_alpha")
    for pattern, value in (fields.get("alpha_pattern") or {}).items():
        # peft's own rule: a pattern fits the end of a path, from a dot on.
        if re.match(rf"(.*\.)?({_simple(pattern)})$", module):
            alpha = value
            break
    if alpha is None:
        return None
    # Rank-stabilised LoRA scales by alpha / sqrt(rank).
    return float(alpha) * rank**0.5 if fields.get("use_rslora") else float(alpha)


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
