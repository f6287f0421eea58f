"""A scale that stands in plain header strings alone: `lora_alpha`, `alpha` and `rank`, ...

Some trainers write no alpha beside the factors and no LoraConfig, only a number in the header.
Readers that do not know it take the scale as 1. It is used where it can mean one thing only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.errors import AdapterRefused, Refusal

# `alpha` means a scale only beside one of the ranks: alone, the word may be about anything.
_ALPHAS = ("lora_alpha", "network_alpha", "alpha")
_RANKS = ("rank", "r", "lora_rank", "lora_r", "lora_dim", "network_dim", "network_rank", "dim")
# What kohya's trainer writes. It survives merges, resizes and conversions that fold the scale.
_KOHYA = ("ss_network_alpha", "ss_network_dim")
_STABILISED = ("use_rslora", "rslora")


class HeaderScale(NamedTuple):
    """What the header says of the scale.

    Attributes:
        alpha: numerator of the scale.
        rank: the rank that it was said for; None where none is said.
        stabilised: whether the scale is alpha / sqrt(rank).
        words: the strings themselves, for messages.
    """

    alpha: float
    rank: float | None
    stabilised: bool
    words: str

    def alpha_for(self, rank: int) -> float:
        """The alpha of a module of this rank, such that its scale is alpha / rank."""
        return self.alpha * rank**0.5 if self.stabilised else self.alpha


def spent_strings(metadata: Mapping[str, str]) -> frozenset[str]:
    """Header strings that say a scale and are wrong once it stands beside the factors."""
    keys = [key for key in _ALPHAS if key in metadata]
    if not keys or (keys == ["alpha"] and not any(key in metadata for key in _RANKS)):
        return frozenset()
    return frozenset(key for key in (*_ALPHAS, *_RANKS, *_STABILISED) if key in metadata)


def scale_strings(metadata: Mapping[str, str]) -> str:
    """The strings of a header that may say a scale, in one: two files may differ in them alone."""
    keys = (*_ALPHAS, *_RANKS, *_KOHYA, *_STABILISED)
    return " ".join(f"{key}={metadata[key]}" for key in keys if key in metadata)


def header_scale(
    modules: Sequence[LoraModule], metadata: Mapping[str, str], origin: str, *, kohya: bool
) -> tuple[HeaderScale | None, tuple[str, ...]]:
    """The scale that the header gives to an adapter whose modules have none, and flags.

    Args:
        modules: with the alphas that stand beside the factors or in a LoraConfig.
        metadata: header strings.
        origin: the file, for messages.
        kohya: whether the keys are kohya's: `ss_network_alpha` in a file with other keys is a
            rest of a conversion, in which the scale may have been folded.

    Returns:
        The scale to use, or None; and what to say in reports.

    Raises:
        AdapterRefused: the header contradicts itself or the factors, and nothing else says the
            scale.
    """
    told = _told(metadata, origin, modules)
    often_stale = told is None
    if told is None:
        told = _kohya(metadata)
    if told is None:
        return None, ()
    if any(module.alpha is not None for module in modules):
        agree = any(_close(module.alpha, told.alpha_for(module.rank)) for module in modules)
        return None, () if agree else (f"scale-conflict: {told.words}, the file's alphas are used",)
    ranks = {module.rank for module in modules}
    if {told.alpha_for(rank) / rank for rank in ranks} == {1.0}:
        return None, ()
    fits = len(ranks) == 1 and told.rank in (None, *ranks)
    if often_stale and not (fits and kohya):
        return None, (f"scale-unsure: {told.words}, scale 1 is used",)
    if not fits:
        _refuse_contradiction(origin, told.words, ranks)
    return told, (f"scale-from-header: {told.words}",)


def _told(
    metadata: Mapping[str, str], origin: str, modules: Sequence[LoraModule]
) -> HeaderScale | None:
    alphas, ranks = _numbers(metadata, _ALPHAS), _numbers(metadata, _RANKS)
    if not alphas or (alphas.keys() == {"alpha"} and not ranks):
        return None
    words = ", ".join(f"{key} {value:g}" for key, value in (alphas | ranks).items())
    if len({*alphas.values()}) > 1 or len({*ranks.values()}) > 1:
        if any(module.alpha is None for module in modules):
            _refuse_contradiction(origin, words, {module.rank for module in modules})
        return None
    stabilised = any(metadata.get(key, "").lower() in {"true", "1"} for key in _STABILISED)
    rank = next(iter(ranks.values()), None)
    return HeaderScale(next(iter(alphas.values())), rank, stabilised, words)


def _kohya(metadata: Mapping[str, str]) -> HeaderScale | None:
    found = _numbers(metadata, _KOHYA)
    if found.keys() != {*_KOHYA}:
        return None
    words = ", ".join(f"{key} {value:g}" for key, value in found.items())
    return HeaderScale(found[_KOHYA[0]], found[_KOHYA[1]], False, words)


def _numbers(metadata: Mapping[str, str], keys: Sequence[str]) -> dict[str, float]:
    """What is a finite number of these strings; `None` and `Dynamic` say nothing."""
    found = {}
    for key in keys:
        try:
            value = float(metadata.get(key, ""))
        except ValueError:
            continue
        if math.isfinite(value):
            found[key] = value
    return found


def _close(alpha: float | None, wanted: float) -> bool:
    # Alphas are stored in 16 bits, too.
    return alpha is not None and math.isclose(alpha, wanted, rel_tol=1e-2)


def _refuse_contradiction(origin: str, words: str, ranks: set[int]) -> NoReturn:
    found = ", ".join(map(str, sorted(ranks)))
    raise AdapterRefused(
        f"{origin}: the header says {words}, the factors have rank {found} and no alpha; expected "
        f"one scale; write an alpha beside each module, or remove these strings if the scale is 1",
        code=Refusal.UNKNOWN_KEYS,
    )
