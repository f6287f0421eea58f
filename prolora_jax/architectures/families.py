"""The families, by hand: what each component's stacks are.

A component without stacks, a text encoder, is matched by names alone.
"""

from collections.abc import Mapping

from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS, DIT_STACKS
from prolora_jax.architectures.llm.names import LLM_STACKS
from prolora_jax.architectures.stack import Stack
from prolora_jax.architectures.unet.stacks import UNET_STACKS

STACKS: Mapping[str, tuple[Stack, ...]] = {
    "unet": UNET_STACKS,
    "lm": LLM_STACKS,
    **dict.fromkeys(DIT_COMPONENTS, DIT_STACKS),
}
"""Outermost stacks by component."""
