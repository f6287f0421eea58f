"""Adapter files as key conventions: a dict of tensors to an `Adapter` and back, no disk."""

from prolora_jax.formats.dumping import concrete_format as concrete_format
from prolora_jax.formats.dumping import dump as dump
from prolora_jax.formats.dumping import fold_scales as fold_scales
from prolora_jax.formats.flax_tree import from_flax as from_flax
from prolora_jax.formats.flax_tree import to_flax as to_flax
from prolora_jax.formats.keys import FORMATS as FORMATS
from prolora_jax.formats.parsing import parse as parse
from prolora_jax.formats.published import published_base as published_base
from prolora_jax.formats.resolution import resolve as resolve
