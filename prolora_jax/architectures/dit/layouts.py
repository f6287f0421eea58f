"""Where a file has the weights of a diffusion transformer: its prefix, its family, its rows.

Each name is read by itself: a file may have some modules as diffusers has them and others as the
authors of the model do. Convolutions over time, which patches of video go through, are left out.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from prolora_jax.architectures.dit.families import dit_family
from prolora_jax.architectures.dit.names import DitFamily
from prolora_jax.architectures.dit.originals import Segments, fused_rows, halves_swapped
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.errors import BaseModelError, Refusal

Shapes = Mapping[str, tuple[int, ...]]

_WEIGHT = ".weight"
# Longest first: what is inside of a whole checkpoint stands before what is a file of its own.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.", "model.", "")
# First levels of what stands beside a transformer, or inside of it and is no part of it.
_BESIDE = (
    *("unet.", "vae.", "first_stage_model.", "cond_stage_model.", "conditioner.", "model_ema."),
    *("text_encoder", "text_conditioner.", "llm_adapter.", *(f"{c}." for c in DIT_COMPONENTS)),
)


class DitLayer(NamedTuple):
    """A module of a diffusion transformer in a file.

    Attributes:
        path: with component, `transformer.transformer_blocks.0.attn.to_q`.
        key: of the tensor that holds its weight.
        shape: of the weight.
        segments: its rows in that tensor; None for all of them in their order.
    """

    path: str
    key: str
    shape: tuple[int, ...]
    segments: Segments | None


class DitInFile(NamedTuple):
    """A diffusion transformer in a file, and what stands before its names there."""

    component: str
    family: DitFamily
    prefix: str


def transformers_in(shapes: Shapes) -> list[DitInFile]:
    """The diffusion transformers of a file.

    Args:
        shapes: shape by key, of all tensors of the file; only the keys count.

    Returns:
        One for each component; none where there are no names of a known family.
    """
    found = []
    for component in DIT_COMPONENTS:
        # A file without a component is the one transformer that a pipeline has.
        prefixes = (f"{component}.", *(_PREFIXES if component == DIT_COMPONENTS[0] else ()))
        for prefix in prefixes:
            family = dit_family(_names(shapes, prefix))
            if family is not None:
                found.append(DitInFile(component, family, prefix))
                break
    return found


def dit_layers(shapes: Shapes, origin: str) -> Iterator[DitLayer]:
    """Every linear layer and convolution of the diffusion transformers in a file.

    Args:
        shapes: shape by key, of all tensors of the file.
        origin: what to call the file.

    Yields:
        The layers. A path may come twice, where a file has a module under two names.

    Raises:
        BaseModelError: a fused weight has a number of rows that its parts cannot have.
    """
    for component, family, prefix in transformers_in(shapes):
        for name in _names(shapes, prefix):
            key = f"{prefix}{name}{_WEIGHT}"
            if key in shapes and len(shapes[key]) in {2, 4}:
                for path, shape, segments in _of_tensor(family, name, key, shapes[key], origin):
                    yield DitLayer(f"{component}.{path}", key, shape, segments)


def _of_tensor(
    family: DitFamily, name: str, key: str, shape: tuple[int, ...], origin: str
) -> Iterator[tuple[str, tuple[int, ...], Segments | None]]:
    parts = family.canonical(name)
    if len(parts) == 1:
        renamed = parts[0] != name
        swapped = renamed and family.is_swapped(parts[0], shape)
        yield parts[0], shape, halves_swapped(shape[0]) if swapped else None
        return
    rows = fused_rows(len(parts), shape)
    if rows is None:
        raise BaseModelError(
            f"{origin}: {key}: found shape {shape}; expected the rows of "
            f"{', '.join(part.rpartition('.')[2] for part in parts)} one after another; fetch the "
            f"model again, or give it in diffusers' naming",
            code=Refusal.SHAPE_MISMATCH,
        )
    for part, (first, end) in zip(parts, rows, strict=True):
        yield part, (end - first, *shape[1:]), ((first, end),)


def _names(shapes: Shapes, prefix: str) -> list[str]:
    """Names behind a prefix, without the tensor's own end, each once and in the file's order."""
    inside = (key.removeprefix(prefix) for key in shapes if key.startswith(prefix))
    names = (name.rpartition(".")[0] for name in inside if not name.startswith(_BESIDE))
    return [*dict.fromkeys(name for name in names if name)]
