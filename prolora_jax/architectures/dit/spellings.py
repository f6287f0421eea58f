"""What adapter files call the layers of a diffusion transformer; no name is taken apart by pattern.

A file has a layer under its canonical name (diffusers') or its original one, dotted or flat, behind
one of a closed set of prefixes. All four names of every layer of a base are generated, and a file's
names are looked up. An original layer may hold several canonical ones, row after row.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

from prolora_jax.architectures.dit.originals import OriginalPart, Segments, originals
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.architectures.naming import flat

# What programs put before a layer's name, dotted or flat; what parsing has put there is last.
_PREFIXES = ("transformer_2.", "transformer.", "lora_transformer_", "lora_unet__", "lora_unet_") + (
    "model.diffusion_model.",
    "diffusion_model.",
    "net.",
    "lm.model.",
    "model.",
    "unet.",
    "lm.",
)
# An export that lost the first letters of `transformer_blocks`.
_TRUNCATED, _WHOLE = "sformer_blocks", "transformer_blocks"
_ATTENTION = ("to_q", "to_k", "to_v")

PROCESSORS: Mapping[str, str] = {
    "qkv_lora1": "img_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora2": "txt_attn.proj",
    "qkv_lora": "linear1.qkv",
    "proj_lora": "linear2",
}
"""Layer of a block by the name that an attention processor has for it, below `processor.`.

`linear1.qkv` is the attention's part of a layer that holds the first of the MLP as well.
"""

# First levels of names that only transformers have, dotted; with an underscore, of flat names.
_ROOTS = ("transformer_blocks", "single_transformer_blocks", "joint_transformer_blocks") + (
    *("double_blocks", "single_blocks", "joint_blocks", "double_layers", "single_layers"),
    *("double_stream_blocks", "single_stream_blocks", "blocks", "noise_refiner"),
    *("context_refiner", "sformer_blocks", "mode_blocks", "txt_mode_blocks", "text_fusion"),
    *("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"),
    *("transformer", "transformer_2", "net.blocks"),
)
_CANONICAL = ("transformer_blocks_", "single_transformer_blocks_", "joint_transformer_blocks_")
_IN_LAYER = ("attention.", "attn.to_", "feed_forward.", "adaLN_modulation.", "norm1.linear")


class HeldLayer(NamedTuple):
    """Rows of a layer in a file that are a layer of the base model.

    Attributes:
        path: of the base model's layer, with component.
        segments: its rows in the file's layer, in its order; None for all, as they are.
    """

    path: str
    segments: Segments | None


class FileLayer(NamedTuple):
    """A layer as a file may have it.

    Attributes:
        name: without prefix, dotted.
        rows: how many rows it has.
        parts: the base model's layers in it, in the order of their rows.
    """

    name: str
    rows: int
    parts: tuple[HeldLayer, ...]


class LayerNames:
    """Every name of every layer of a base model's transformers.

    Args:
        shapes: shape of the weight by path with component.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.components = tuple(
            c for c in DIT_COMPONENTS if any(p.startswith(f"{c}.") for p in shapes)
        )
        self._paths = {path for path in shapes if said_component(path) in self.components}
        self._tables: dict[str, dict[str, FileLayer]] = {}
        self._original: dict[str, FileLayer] = {}
        known = originals(shapes) if self.components else {}
        for component in self.components:
            prefix = f"{component}."
            own = {p: s[0] for p, s in shapes.items() if p.startswith(prefix)}
            plain = [
                FileLayer(path.removeprefix(prefix), rows, (HeldLayer(path, None),))
                for path, rows in own.items()
            ]
            grouped = [*_grouped({p: part for p in own if (part := known.get(p))}, own)]
            for layer in grouped:
                self._original |= {part.path: layer for part in layer.parts}
            table: dict[str, FileLayer] = {}
            # Canonical names last: they win where both namings have one.
            for layer in (*map(_attention_of, grouped), *grouped, *plain):
                if layer is not None:
                    table |= {layer.name: layer, flat(layer.name): layer}
            self._tables[component] = table

    def find(self, name: str, component: str) -> FileLayer | None:
        """The layer that a file has under a name; None where the base has no such layer.

        Args:
            name: with any prefix, dotted or flat.
            component: of `components`, where it is looked for.
        """
        table = self._tables[component]
        return next((found for bare in _bare(name) if (found := table.get(bare))), None)

    def has(self, path: str) -> bool:
        """Whether a path with component is that of a transformer's layer here."""
        return path in self._paths

    @cached_property
    def joined(self) -> Mapping[str, FileLayer]:
        """Original layers that hold several of the base whole, row after row, by path."""
        found = {}
        for path, layer in self._original.items():
            runs = [run for part in layer.parts for run in part.segments or ()]
            if len(layer.parts) == len(runs) > 1:
                found[f"{path.partition('.')[0]}.{layer.name}"] = layer
        return found

    def original(self, path: str) -> FileLayer:
        """The original layer that holds a layer of the base; itself where the naming is the same.

        Args:
            path: with component.
        """
        component, _, name = path.partition(".")
        return self._original.get(path) or self._tables[component][name]


def said_component(name: str) -> str | None:
    """Which transformer of a pipeline a name in a file says; None where it says none."""
    return next((c for c in DIT_COMPONENTS if name.startswith(f"{c}.")), None)


def is_transformer_name(name: str) -> bool:
    """Whether a module's name, as parsed, is one of a transformer's, as far as a name tells.

    Args:
        name: with any prefix, dotted or flat.
    """
    if name.startswith("lora_transformer_"):
        return True
    levels = name.removeprefix("lora_unet_").removeprefix("_")
    between = "_" if levels != name else "."
    if any(levels.startswith(root.replace(".", between) + between) for root in _ROOTS):
        return True
    first, _, inside = levels.removeprefix("lm.model.").partition(between)
    inner = inside.partition(between)[2]
    return first == "layers" and any(
        inner.startswith(part.replace(".", between)) for part in _IN_LAYER
    )


def has_original_name(name: str) -> bool:
    """Whether a flat name is of a block that only the original code calls so.

    Args:
        name: behind `lora_unet_`.
    """
    bare = name.removeprefix("lora_unet_").removeprefix("_")
    return is_transformer_name(name) and not bare.startswith(_CANONICAL)


def _bare(name: str) -> Iterable[str]:
    """What a name may be without what stands before it, likeliest first."""
    yield name
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            for rest in (name.removeprefix(prefix), name.removeprefix(prefix).rstrip("_")):
                yield rest
                if rest.startswith(_TRUNCATED):
                    yield _WHOLE + rest.removeprefix(_TRUNCATED)
                for inner in ("net.", "model."):
                    yield rest.removeprefix(inner)
    if name.startswith(_TRUNCATED):
        yield _WHOLE + name.removeprefix(_TRUNCATED)


def _grouped(parts: Mapping[str, OriginalPart], rows: Mapping[str, int]) -> Iterable[FileLayer]:
    """Original layers with the canonical ones that they hold."""
    groups: dict[str, list[HeldLayer]] = {}
    for path, part in parts.items():
        groups.setdefault(part.name, []).append(HeldLayer(path, part.segments))
    for name, found in groups.items():
        found.sort(key=lambda part: part.segments or ())
        ends = [max(end for _, end in p.segments) if p.segments else rows[p.path] for p in found]
        yield FileLayer(name, max(ends), tuple(found))


def _attention_of(layer: FileLayer) -> FileLayer | None:
    """The attention's part of a layer that holds more, which a processor's pair is for."""
    first = layer.parts[: len(_ATTENTION)]
    ends = tuple(part.path.rpartition(".")[2] for part in first)
    if len(layer.parts) == len(first) or ends != _ATTENTION or not first[-1].segments:
        return None
    return FileLayer(f"{layer.name}.qkv", first[-1].segments[-1][1], first)
