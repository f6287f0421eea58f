"""Which published base model's names an adapter uses, where nobody has said it."""

from functools import lru_cache

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.dumping import concrete_format, key_names
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.identify import spec_from_config
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.errors import AdapterRefused, Refusal, UsageError


def published_base(adapter: Adapter, choice: str) -> BaseModelSpec:
    """The published base model whose names tell what an adapter's keys are in a format.

    Smaller models share most names with larger ones, so several may fit. That is no obstacle as
    long as they all lead to the same keys; it does not say which of them the adapter is for.

    Args:
        adapter: as parsed.
        choice: format to write, `same`, `kohya` or one of `FORMATS`.

    Returns:
        The first model in `configs.CONFIGS` that has every module in its shape.

    Raises:
        AdapterRefused: no published model fits.
        UsageError: several fit and their keys differ.
    """
    fitting: dict[str, BaseModelSpec] = {}
    keys = set()
    for name in CONFIGS:
        spec = _spec(name)
        try:
            resolved = resolve(adapter, spec)
            format = concrete_format(choice, resolved, spec)
            keys.add((format, key_names(resolved, format, spec)))
        except AdapterRefused:
            continue
        fitting[name] = spec
    if not fitting:
        raise AdapterRefused(
            f"{adapter.origin}: found modules, such as {adapter.modules[0].path}, whose names and "
            f"shapes fit no published base model; expected one of {', '.join(CONFIGS)}; name the "
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


@lru_cache
def _spec(name: str) -> BaseModelSpec:
    return spec_from_config(CONFIGS[name], name=name)
