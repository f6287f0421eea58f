"""Where a file has the weight of each module, whatever naming its keys follow.

Names in, names out: the tensors themselves stay on disk. One file may hold a UNet or a diffusion
transformer and text encoders, or a language model; of every other component (VAE, schedules)
nothing is said.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from prolora_jax.architectures.clip.single_files import (
    CLIP_PREFIXES,
    FUSED,
    OPEN_CLIP_PREFIXES,
    open_clip_layers,
    plain_layers,
)
from prolora_jax.architectures.dit.layouts import dit_layers
from prolora_jax.architectures.dit.originals import Segments
from prolora_jax.architectures.llm.layouts import lm_layers
from prolora_jax.architectures.naming import UNET, without_wrappers
from prolora_jax.architectures.unet.ldm import LDM_PARTS, ldm_prefix, paths_of_ldm_names

Shapes = Mapping[str, tuple[int, ...]]
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Placement:
    """Where the weight of a module is.

    Attributes:
        key: name of the tensor.
        shape: shape of the module's weight, `(out, in)` or `(out, in, kh, kw)`.
        segments: first row and end of each run of rows that the weight is made of, in order; None
            for all rows of the tensor as they are.
        transposed: whether the tensor is `(in, out)`; rows are those of `(out, in)` all the same.
        twins: other places that hold the module, too, under another of its names.
        expert: which matrix of a tensor with one for each expert; None where it is a matrix itself.
        step: every which one of the rows it is.
    """

    key: str
    shape: tuple[int, ...]
    segments: Segments | None = None
    transposed: bool = False
    twins: tuple["Placement", ...] = ()
    expert: int | None = None
    step: int = 1


def placements(shapes: Shapes, origin: str = "the base model") -> dict[str, Placement]:
    """Every linear layer and convolution of the networks in a file that adapters are made for.

    They are the UNet or diffusion transformer with its text encoders, or the language model.

    Args:
        shapes: shape by tensor key: diffusers names, bare (`conv_in.weight`) or with component
            (`unet.conv_in.weight`, `text_encoder.…`), or LDM names, bare or as in checkpoints;
            a language model's as transformers has them; a diffusion transformer's as diffusers or
            its authors have them, behind any of the usual prefixes.
        origin: what to call the file in messages.

    Returns:
        Placement by module path, sorted by path.

    Raises:
        BaseModelError: a fused weight has a number of rows that its parts cannot have.
    """
    stored = _unwrapped(shapes)
    plain = {key: shapes[own] for key, own in stored.items()}
    found = [*_unet(plain)]
    for prefix, component in CLIP_PREFIXES.items():
        found += _clip(plain, prefix, component)
    for prefix in OPEN_CLIP_PREFIXES:
        found += _open_clip(plain, prefix)
    for layer in lm_layers(plain):
        segments = None if layer.rows is None else (layer.rows,)
        where = {"transposed": layer.transposed, "expert": layer.expert, "step": layer.step}
        found.append((layer.path, Placement(layer.key, layer.shape, segments, **where)))
    placed = dict(found)
    for path, key, shape, segments in dit_layers(plain, origin):
        place = Placement(key, shape, segments)
        twin = placed.get(path)
        placed[path] = place if twin is None else replace(twin, twins=(*twin.twins, place))
    return {path: _stored(placed[path], stored) for path in sorted(placed)}


def _stored(place: Placement, stored: Mapping[str, str]) -> Placement:
    """The same place by the keys that the file has."""
    twins = tuple(_stored(twin, stored) for twin in place.twins)
    return replace(place, key=stored[place.key], twins=twins)


def unet_keys(shapes: Shapes) -> dict[str, str]:
    """Which tensor of a file is which of the UNet's: weights, biases and norms.

    Args:
        shapes: as for `placements`.

    Returns:
        Key in the file by path with `unet.` and `.weight` or `.bias`; empty without a UNet.
    """
    stored = _unwrapped(shapes)
    found = _unet_keys({key: shapes[own] for key, own in stored.items()})
    return {path: stored[key] for path, key in found.items()}


def _unwrapped(keys: Iterable[str]) -> dict[str, str]:
    """Key in the file by the key without the levels that training programs add.

    Where a file has a tensor under both names, the plain one is the model's.
    """
    found = {}
    for key in keys:
        plain = without_wrappers(key)
        if plain == key or plain not in found:
            found[plain] = key
    return found


def _unet_keys(shapes: Shapes) -> dict[str, str]:
    prefix = _diffusers_prefix(shapes)
    if prefix is not None:
        inside = (key for key in shapes if key.startswith(prefix))
        return {UNET + key.removeprefix(prefix): key for key in inside}
    prefix = ldm_prefix(shapes)
    if prefix is None:
        return {}
    inside = tuple(prefix + part for part in LDM_PARTS)
    keys = {key.removeprefix(prefix): key for key in shapes if key.startswith(inside)}
    modules = {key.removesuffix(_WEIGHT) for key in keys if key.endswith(_WEIGHT)}
    paths = paths_of_ldm_names(modules) or {}
    found = {}
    for name, key in keys.items():
        module, _, leaf = name.rpartition(".")
        if module in paths:
            found[f"{paths[module]}.{leaf}"] = key
    return found


def _unet(shapes: Shapes) -> Iterator[tuple[str, Placement]]:
    for path, key in _unet_keys(shapes).items():
        if _is_module(key, shapes[key]):
            yield path.removesuffix(_WEIGHT), Placement(key, shapes[key])


def _diffusers_prefix(shapes: Shapes) -> str | None:
    prefixes = (p for p in ("", UNET) if f"{p}conv_in.weight" in shapes)
    return next(
        (p for p in prefixes if any(k.startswith(f"{p}down_blocks.") for k in shapes)), None
    )


def _is_module(key: str, shape: tuple[int, ...]) -> bool:
    return key.endswith(_WEIGHT) and len(shape) in {2, 4}


def _clip(shapes: Shapes, prefix: str, component: str) -> Iterator[tuple[str, Placement]]:
    for key, shape in shapes.items():
        name = key.removeprefix(prefix).removesuffix(_WEIGHT)
        # Some writers leave out the level that holds the tower.
        name = f"text_model.{name}" if name.startswith("encoder.layers.") else name
        # Rows of an embedding are looked up, not multiplied with: no adapter of ours is for them.
        layer = name.startswith("text_model.encoder.") or name == "text_projection"
        if layer and key.startswith(prefix) and _is_module(key, shape):
            yield component + name, Placement(key, shape)


def _open_clip(shapes: Shapes, prefix: str) -> Iterator[tuple[str, Placement]]:
    for layer, path in open_clip_layers(shapes.keys(), prefix):
        fused = f"{layer}.attn.in_proj_weight"
        width = shapes[fused][0] // len(FUSED)
        for i, name in enumerate(FUSED):
            rows = ((i * width, (i + 1) * width),)
            shape = (width, *shapes[fused][1:])
            yield f"{path}.self_attn.{name}", Placement(fused, shape, rows)
        for key, inner in plain_layers(layer, path):
            if key in shapes:
                yield inner, Placement(key, shapes[key])
    projection, component = f"{prefix}text_projection", OPEN_CLIP_PREFIXES[prefix]
    # Saved as a bare matrix (in, out). SD 2 has one, too, and does not use it.
    if component == "text_encoder_2." and len(shapes.get(projection, ())) == 2:
        shape = shapes[projection][::-1]
        yield f"{component}text_projection", Placement(projection, shape, transposed=True)
