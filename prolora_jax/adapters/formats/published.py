"""Which published base model's names an adapter uses, where nobody has said it."""

from dataclasses import replace
from functools import lru_cache

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.dumping import concrete_format, key_names
from prolora_jax.adapters.formats.keys import KOHYA_UNET, is_flat_ldm
from prolora_jax.adapters.formats.resolution import require_one_spelling, resolve
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.dit.published import DITS
from prolora_jax.architectures.dit.spellings import is_transformer_name
from prolora_jax.architectures.identify import published_spec, spec_from_config
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.ldm import SAME_NAMES
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.errors import AdapterRefused, Refusal, UsageError

BOTH_SPELLINGS = (
    "both-spellings: names of LDM blocks beside names of diffusers blocks; whether a module is "
    "there twice is told with its base model (--source)"
)


def published_base(adapter: Adapter, choice: str) -> BaseModelSpec:
    """The published base model whose names tell what an adapter's keys are in a format.

    Smaller models share most names with larger ones, so several may fit. That is no obstacle as
    long as they all lead to the same keys; it does not say which of them the adapter is for.

    Args:
        adapter: as parsed.
        choice: format to write, `same`, `kohya` or one of `FORMATS`.

    Returns:
        The first model in `configs.CONFIGS`, or of transformers in `DITS`, that has every module
        in its shape.

    Raises:
        AdapterRefused: no published model fits, or a module occurs twice with different numbers.
        UsageError: several fit and their keys differ.
    """
    fitting: dict[str, BaseModelSpec] = {}
    keys = set()
    twice = None
    every = (*adapter.modules, *adapter.structured)
    known = DITS if any(is_transformer_name(module.path) for module in every) else CONFIGS
    for name in known:
        spec = _spec(name)
        try:
            resolved = resolve(adapter, spec)
            format = concrete_format(choice, resolved, spec)
            keys.add((format, key_names(resolved, format, spec)))
        except AdapterRefused as refusal:
            twice = twice or _of_second(refusal)
            continue
        fitting[name] = spec
    if twice is not None and not fitting:
        raise twice
    if not fitting and every[0].path.startswith(LM):
        raise AdapterRefused(
            f"{adapter.origin}: found an adapter of a language model, {every[0].path}, and no base "
            f"model; expected the one that it is for, which says how its layers are stored; name "
            f"its folder or file with --base",
            code=Refusal.NO_MATCHING_MODULE,
        )
    if not fitting:
        raise AdapterRefused(
            f"{adapter.origin}: found modules, such as {every[0].path}, whose names and "
            f"shapes fit no published base model; expected one of {', '.join(known)}; name the "
            f"base model that it is for with --base",
            code=Refusal.NO_MATCHING_MODULE,
        )
    if len(keys) > 1:
        raise UsageError(
            f"{adapter.origin}: found modules that fit {', '.join(fitting)}, whose keys differ in "
            f"format {choice}; expected one; name the base model that it is for with --base",
            code=Refusal.BAD_OPTION,
        )
    return next(iter(fitting.values()))


def told_apart(adapter: Adapter) -> Adapter:
    """Refuse an adapter that has a module twice, in whichever spellings.

    LDM counts its blocks in another way than diffusers, and by the net: which of their names are
    one module's is told by the published models that have all of them.

    Args:
        adapter: as parsed, where nobody has said its base model.

    Returns:
        The adapter; with a flag where it has both kinds of names and they cannot be told apart.

    Raises:
        AdapterRefused: a module occurs in two spellings with different numbers.
    """
    require_one_spelling(adapter)
    every = (*adapter.modules, *adapter.structured)
    if len({is_flat_ldm(m.path) for m in every if _has_spellings(m.path)}) < 2:
        return adapter
    twice = [_twice(adapter, name) for name in CONFIGS]
    fitting = [refusal for fits, refusal in twice if fits]
    refusals = [refusal for refusal in fitting if refusal is not None]
    if refusals and len(refusals) == len(fitting):
        raise refusals[0]
    if fitting and not refusals:
        return adapter
    return replace(adapter, flags=(*adapter.flags, BOTH_SPELLINGS))


def _has_spellings(path: str) -> bool:
    inner = path.removeprefix(UNET).removeprefix(KOHYA_UNET)
    return not is_text_encoder(path) and not inner.startswith(SAME_NAMES)


def _twice(adapter: Adapter, name: str) -> tuple[bool, AdapterRefused | None]:
    """Whether a published model has all modules, and the refusal where one is there twice."""
    try:
        resolve(adapter, _spec(name))
    except AdapterRefused as refusal:
        found = _of_second(refusal)
        return found is not None, found
    return True, None


def _of_second(refusal: AdapterRefused) -> AdapterRefused | None:
    return refusal if refusal.code is Refusal.DUPLICATE_MODULE else None


@lru_cache
def _spec(name: str) -> BaseModelSpec:
    return published_spec(name) if name in DITS else spec_from_config(CONFIGS[name], name=name)
