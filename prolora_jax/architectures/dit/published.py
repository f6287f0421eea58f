"""Published diffusion transformers by id, and which of them a model is by names and shapes.

Many models share a table: whatever was tuned, edited or distilled from a published one. So an id
says which architecture a model has, never which of its checkpoints it is.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from prolora_jax.architectures.dit import tables_cross as cross
from prolora_jax.architectures.dit import tables_streams as streams

Modules = Mapping[str, tuple[int, ...]]
"""Shape by name without component, `transformer_blocks.0.attn.to_q`."""

_SIZE = re.compile(r"(\d*)([a-z]\w*)")


@dataclass(frozen=True)
class DitTable:
    """The modules of a published transformer.

    Attributes:
        texts: lines of two kinds. `transformer_blocks 0 double` says that the names below stand in
            this stack, in the blocks from the first number to before the second; before such a
            line names are in no stack. `6h h: norm1.linear` says the shape of the modules behind
            the colon; of a module that is named twice the later line counts.
        sizes: numbers by the names that the lines have for them.
        same: other models with the same modules in the same shapes, for people.
    """

    texts: tuple[str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    same: tuple[str, ...] = ()


def _flux1(inputs: int, double: int, *same: str, guidance: bool = True) -> DitTable:
    texts = (streams.FLUX1, *((streams.FLUX1_GUIDANCE,) if guidance else ()))
    return DitTable(texts, {"in": inputs, "double": double}, same)


def _sd3(width: int, depth: int, dual: int = 0) -> DitTable:
    sizes = {"h": width, "depth": depth, "last": depth - 1, "dual": dual}
    return DitTable((streams.SD3, streams.SD35_DUAL), sizes)


def _flux2(width: int, text: int, double: int, single: int, *same: str) -> DitTable:
    sizes = {"h": width, "text": text, "double": double, "single": single}
    return DitTable((streams.FLUX2,), sizes, same)


def _wan(width: int, inner: int, depth: int, out: int, *same: str) -> DitTable:
    return DitTable((cross.WAN,), {"h": width, "ff": inner, "depth": depth, "out": out}, same)


def _cosmos(width: int, depth: int, *same: str) -> DitTable:
    return DitTable((cross.COSMOS,), {"h": width, "depth": depth}, same)


def _sana(width: int, depth: int) -> DitTable:
    sizes = {"h": width, "ff": 5 * width, "half": 5 * width // 2, "depth": depth}
    return DitTable((cross.SANA,), sizes)


_FLUX2_DEV = _flux2(6144, 15360, 8, 48)
_WAN_I2V = _wan(5120, 13824, 40, 64, "Wan 2.1 I2V 480p and 720p", "FLF2V")

DITS: Mapping[str, DitTable] = {
    "flux1-dev": _flux1(64, 19, "FLUX.1 Krea dev", "FLUX.1 Kontext dev"),
    "flux1-schnell": _flux1(64, 19, guidance=False),
    "flux1-fill": _flux1(384, 19),
    "flux1-control": _flux1(128, 19, "FLUX.1 Canny dev", "FLUX.1 Depth dev"),
    "flex1-alpha": _flux1(64, 8),
    "flex2-preview": _flux1(196, 8),
    "chroma1": DitTable((streams.CHROMA,), same=("Chroma1 HD, Base and Flash",)),
    "flux2-dev": DitTable((*_FLUX2_DEV.texts, streams.FLUX2_GUIDANCE), _FLUX2_DEV.sizes),
    "flux2-klein-9b": _flux2(4096, 12288, 8, 24, "FLUX.2 klein base 9B"),
    "flux2-klein-4b": _flux2(3072, 7680, 5, 20, "FLUX.2 klein base 4B"),
    "flux3": DitTable((streams.FLUX3,)),
    "sd3-medium": _sd3(1536, 24),
    "sd35-large": _sd3(2432, 38),
    "sd35-medium": _sd3(1536, 24, dual=13),
    "auraflow-v03": DitTable((streams.AURAFLOW,), same=("Pony V7",)),
    "hunyuan-image21": DitTable((streams.HUNYUAN_IMAGE,)),
    "hunyuan-video": DitTable((streams.HUNYUAN_VIDEO,), same=("SkyReels V1", "FastHunyuan")),
    "hunyuan-video15": DitTable((streams.HUNYUAN_VIDEO_15,)),
    "pixart-alpha-1024": DitTable((cross.PIXART, cross.PIXART_SIZES)),
    "pixart-sigma-1024": DitTable((cross.PIXART,)),
    "sana-1600m": _sana(2240, 20),
    "sana-600m": _sana(1152, 28),
    "sana15-4800m": _sana(2240, 60),
    "cogvideox-2b": DitTable((cross.COGVIDEOX,), {"h": 1920, "depth": 30}),
    "cogvideox-5b": DitTable((cross.COGVIDEOX,), {"h": 3072, "depth": 42}),
    "wan21-t2v-1-3b": _wan(1536, 8960, 30, 64),
    # What tells an expert that sees a picture is the convolution over time, which is no module.
    "wan21-t2v-14b": _wan(
        5120, 13824, 40, 64, "both experts of Wan 2.2 T2V A14B and of Wan 2.2 I2V A14B"
    ),
    "wan21-i2v-14b": DitTable((cross.WAN, cross.WAN_IMAGE), _WAN_I2V.sizes, _WAN_I2V.same),
    "wan22-ti2v-5b": _wan(3072, 14336, 30, 192),
    "cosmos-predict2-2b": _cosmos(2048, 28, "Anima"),
    "cosmos-predict2-14b": _cosmos(5120, 36),
    "anima-2-9b": _cosmos(2048, 40),
    "anima-3-8b": _cosmos(2048, 52),
    "krea2": DitTable((cross.KREA2,)),
    "ltx-video-2b": DitTable((cross.LTX,), {"h": 2048, "depth": 28}),
    "ltx-video-13b": DitTable((cross.LTX,), {"h": 4096, "depth": 48}),
    "ltx2": DitTable((cross.LTX2, cross.LTX2_CAPTION), {"m": 12288, "mv": 24576}),
    "ltx23": DitTable((cross.LTX2, cross.LTX23_GATES), {"m": 18432, "mv": 36864}),
    "lumina2": DitTable((cross.LUMINA2,)),
    "z-image": DitTable((cross.Z_IMAGE,), same=("Z-Image Turbo",)),
    "qwen-image": DitTable((cross.QWEN,), same=("Qwen-Image-Edit, 2509 and 2511",)),
    "qwen-image-layered": DitTable((cross.QWEN, cross.QWEN_LAYERED)),
    "qwen-image-21": DitTable((cross.QWEN21,)),
    "hidream-i1": DitTable((cross.HIDREAM,), same=("HiDream I1 full, dev and fast",)),
}
"""Tables by id."""


@cache
def dit_modules(architecture: str) -> Modules:
    """The modules of a published transformer: linear layers and convolutions.

    Args:
        architecture: id in `DITS`.

    Raises:
        KeyError: there is no such id.
    """
    table = DITS[architecture]
    found: dict[str, tuple[int, ...]] = {}
    for text in table.texts:
        stack, numbers = "", range(0)
        for line in text.split("\n"):
            shape, colon, names = line.partition(":")
            if colon:
                sizes = tuple(_size(word, table.sizes) for word in shape.split())
                found |= dict.fromkeys(_named(stack, numbers, names.split()), sizes)
            elif line:
                stack, *ends = line.split()
                numbers = range(*(_size(end, table.sizes) for end in ends))
    return found


def _named(stack: str, numbers: range, names: list[str]) -> Iterator[str]:
    if not stack:
        yield from names
    for number in numbers:
        yield from (f"{stack}.{number}.{name}" for name in names)


def _size(word: str, sizes: Mapping[str, int]) -> int:
    """`6h` where h is 3072, or a plain number."""
    found = _SIZE.fullmatch(word)
    return int(word) if found is None else int(found[1] or 1) * sizes[found[2]]
