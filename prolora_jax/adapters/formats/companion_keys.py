"""Keys of vectors beside the pairs: a bias, a norm's weight. Not every format has one for each.

LyCORIS, ComfyUI and the web interfaces add `.diff_b` to a layer's bias and `.w_norm` and `.b_norm`
to a norm; peft and diffusers know only the bias of a factor, `.lora_B.bias`.
"""

import logging
from collections.abc import Iterable

import numpy as np

from prolora_jax.adapters.adapter import Adapter, Companion
from prolora_jax.adapters.formats.components import COMFYUI_UNET
from prolora_jax.adapters.formats.keys import KOHYA_UNET, PEFT_WRAPPER
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.naming import UNET, flat
from prolora_jax.architectures.norms import ldm_names, norms
from prolora_jax.architectures.spec import BaseModelSpec

_log = logging.getLogger(__name__)


def companion_tensors(adapter: Adapter, format: str, spec: BaseModelSpec) -> dict[str, np.ndarray]:
    """The companions of an adapter under the keys of a format.

    What has no layer in the base model, no effect or no key in the format is left out, with a
    warning: nobody could apply it.

    Args:
        adapter: resolved against `spec`.
        format: one of `FORMATS`, as it is written.
        spec: the base model it is for.

    Returns:
        Tensors by key.
    """
    companions = [c for c in adapter.companions if c.part != "none"]
    if not companions:
        return {}
    namer = _Namer(adapter, format, spec)
    named = [(namer.key(c), c) for c in companions]
    left = [c.key for key, c in named if key is None]
    if left:
        _warn(adapter.origin, format, left)
    return {key: namer.array(c) for key, c in named if key is not None}


def _warn(origin: str, format: str, left: Iterable[str]) -> None:
    left = list(left)
    text = "%s: %d tensors beside the pairs, first %s, have no key in format %s; left out"
    _log.warning(text, origin, len(left), left[0], format)


class _Namer:
    """Keys of one adapter's companions in one format."""

    def __init__(self, adapter: Adapter, format: str, spec: BaseModelSpec):
        self._format, self._spec = format, spec
        self._norms = norms(spec)
        self._scales = {module.path: module.scale for module in adapter.modules}
        self._ldm = ldm_names(spec) if format in {"kohya-ldm", "comfyui"} else {}

    def key(self, companion: Companion) -> str | None:
        """Its key; None where there is none."""
        path, norm = companion.path, companion.path in self._norms
        if companion.part == "rows" and self._format == "peft" and path in self._spec.modules:
            component, _, rest = path.partition(".")
            return f"{component}.{PEFT_WRAPPER}{rest}.token_adapter.trainable_tokens_delta"
        if companion.part == "saved" and self._format == "peft":
            component, _, rest = path.partition(".")
            return f"{component}.{PEFT_WRAPPER}{rest}.{companion.key.rpartition('.')[2]}"
        if companion.part in {"layer", "saved", "rows"} or not (norm or path in self._spec.modules):
            return None
        if self._format in {"diffusers", "peft"}:
            if norm or path not in self._scales:
                return None
            component, _, rest = path.partition(".")
            wrapped = f"{component}.{PEFT_WRAPPER}{rest}"
            return f"{wrapped if self._format == 'peft' else path}.lora_B.bias"
        name = self._name(path)
        if name is None:
            return None
        end = {"bias": ".b_norm", "weight": ".w_norm"}[companion.part] if norm else ".diff_b"
        return name + end

    def array(self, companion: Companion) -> np.ndarray:
        """Its numbers: a factor's bias stands there without its module's scale."""
        scale = self._scales.get(companion.path, 1.0)
        if self._format != "peft" or scale == 1.0 or companion.part in {"rows", "saved"}:
            return companion.array
        return (companion.array.astype(np.float64) / scale).astype(np.float32)

    def _name(self, path: str) -> str | None:
        if self._format not in {"kohya-ldm", "kohya-diffusers", "comfyui"} or is_text_encoder(path):
            return None
        if self._format == "kohya-diffusers":
            return KOHYA_UNET + flat(path.removeprefix(UNET))
        ldm = self._ldm.get(path)
        if ldm is None:
            return None
        return KOHYA_UNET + flat(ldm) if self._format == "kohya-ldm" else COMFYUI_UNET + ldm
