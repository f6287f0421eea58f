"""Encoders that judge pictures: by what name, from which files, and how pictures are prepared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from prolora_jax.architectures.flax_trees import Tree
from prolora_jax.architectures.vision.dinov2 import dinov2_from_original
from prolora_jax.architectures.vision.lpips import lpips_to_flax
from prolora_jax.architectures.vision.names import clip_vision_to_flax, dinov2_to_flax
from prolora_jax.architectures.vision.open_clip import (
    CSD_STYLE,
    text_from_open_clip,
    unwrapped,
    vision_from_csd,
    vision_from_open_clip,
)
from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.evaluation.metrics import preprocessing
from prolora_jax.evaluation.metrics.preprocessing import Preprocessing
from prolora_jax.io.judging.weights import (
    PublishedWeights,
    config_beside,
    find_weights,
    read_weights,
)
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.vision.config import PUBLISHED, VisionConfig, vision_config
from prolora_jax.nets.vision.loading import params_digest, vision_params
from prolora_jax.nets.vision.lpips import WIDTHS, Lpips
from prolora_jax.nets.vision.vit import VisionTransformer

_CSD = "csd"
# Towers side by side in one file, of which only one is read.
_OF_TEXT = ("text_model.", "text_projection", "transformer.", "token_embedding.", "ln_final.")
_OF_PICTURES = ("vision_model.", "visual_projection.", "visual.")
_LPIPS_HEADS = PublishedWeights("lpips-heads", "the package lpips 0.1.4", "weights/v0.1/vgg.pth")
_LPIPS_TRUNK = PublishedWeights("vgg16", "timm/vgg16.tv_in1k")


@dataclass(frozen=True)
class KnownEncoder:
    """An encoder that can be asked for by name.

    Attributes:
        weights: where they are.
        config: key of `PUBLISHED`, where no `config.json` stands beside the weights.
        preprocessing: how pictures are prepared.
    """

    weights: PublishedWeights
    config: str
    preprocessing: Preprocessing


def _known(
    name: str, hub_id: str, config: str, how: Preprocessing, file: str = "model.safetensors"
) -> tuple[str, KnownEncoder]:
    return name, KnownEncoder(PublishedWeights(name, hub_id, file), config, how)


_CLIP, _HPS = preprocessing.CLIP, preprocessing.HPS
_H14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
ENCODERS: Mapping[str, KnownEncoder] = dict(
    [
        _known("clip", "openai/clip-vit-large-patch14", "clip-vit-l-14", _CLIP),
        _known("openclip-h", _H14, "openclip-vit-h-14", _CLIP, "open_clip_model.safetensors"),
        _known("hps-v2.1", "xswu/HPSv2", "openclip-vit-h-14", _HPS, "HPS_v2.1_compressed.pt"),
        _known("hps-v2.0", "xswu/HPSv2", "openclip-vit-h-14", _HPS, "HPS_v2_compressed.pt"),
        # The authors' own file, tomg-group-umd/CSD-ViT-L, is a pickle with the same keys.
        _known(_CSD, "yuxi-liu-wired/CSD", "clip-vit-l-14", preprocessing.CSD),
        *(
            _known(f"dinov2-{size}", f"facebook/dinov2-{size}", f"dinov2-{size}", how)
            for size, how in dict.fromkeys(("small", "base", "large"), preprocessing.DINOV2).items()
        ),
    ]
)
"""Encoders by name. `hps-v2.0` is not comparable to `hps-v2.1`."""


@dataclass(frozen=True, eq=False)
class PictureEncoder:
    """An encoder that is ready: `net.apply({"params": params}, pixels).embedding`.

    Attributes:
        name: of `ENCODERS`.
        net: what computes.
        params: its parameters.
        preprocessing: how pictures are prepared.
        digest: what embeddings by it are kept under: its weights and preprocessing.
    """

    name: str
    net: VisionTransformer
    params: Params = field(repr=False)
    preprocessing: Preprocessing
    digest: str

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return self.net.config.projection or self.net.config.width


def load_encoder(name: str, weights_dir: Path | None = None) -> PictureEncoder:
    """An encoder of pictures, from safetensors in any published layout.

    Args:
        name: of `ENCODERS`.
        weights_dir: folder with `NAME.safetensors`, or `NAME/model.safetensors`; a `config.json` of
            transformers in `NAME/` is believed, else the published sizes are. None for the hub.

    Returns:
        The encoder, its parameters in float32.

    Raises:
        UsageError: there is no encoder of this name, or its file is not there.
        BaseModelError: the file is another net's, or damaged.
    """
    known = _require_known(name)
    path = find_weights(known.weights, weights_dir)
    raw = config_beside(path) if path.parent.name == name or weights_dir is None else None
    config = PUBLISHED[known.config]
    if raw is not None and "model_type" in raw:
        config = vision_config(raw, origin=str(path.parent / "config.json"))
    net = VisionTransformer(config)
    sample = (_pictures(known.preprocessing),)
    params = vision_params(net, _tree(name, path, config), sample, str(path))
    digest = params_digest(params, config, known.preprocessing)
    return PictureEncoder(name, net, params, known.preprocessing, digest)


def load_text_tensors(name: str, weights_dir: Path | None = None) -> dict[str, np.ndarray]:
    """The text tower that belongs to an encoder, as tensors in transformers' names.

    Args:
        name: of `ENCODERS`, of one that has a text tower: CLIP, OpenCLIP, HPS.
        weights_dir: as `load_encoder`.

    Returns:
        `text_model.…` and `text_projection.weight`, in torch layout and their stored dtype.

    Raises:
        UsageError: there is no encoder of this name, or its file is not there.
        BaseModelError: there is no text tower in the file.
    """
    path = find_weights(_require_known(name).weights, weights_dir)
    tensors = _tensors(path, _OF_PICTURES)
    if any(key.startswith("text_model.") for key in tensors):
        return {k: t for k, t in tensors.items() if k.startswith(("text_model.", "text_proj"))}
    if "token_embedding.weight" not in tensors:
        raise BaseModelError(
            f"{path}: found {len(tensors)} tensors, none of a text tower; expected CLIP's, in "
            f"transformers' or OpenCLIP's names; give the file with both towers",
            code=Refusal.UNKNOWN_KEYS,
        )
    return text_from_open_clip(tensors)


def load_lpips(
    weights_dir: Path | None = None, *, widths: tuple[int, ...] = WIDTHS
) -> tuple[Lpips, Params]:
    """LPIPS with VGG16.

    Args:
        weights_dir: folder with `vgg16.safetensors` (torchvision's or timm's) and
            `lpips-heads.safetensors` (lpips' own `weights/v0.1/vgg.pth`, converted); the heads are
            not on the hub.
        widths: channels of the five stages; other than VGG16's only in small nets for tests.

    Returns:
        The net, and its parameters in float32.

    Raises:
        UsageError: a file is not there.
        BaseModelError: a file is another net's, or damaged.
    """
    heads, trunk = (find_weights(part, weights_dir) for part in (_LPIPS_HEADS, _LPIPS_TRUNK))
    tree = lpips_to_flax(read_weights(trunk, lambda key: key.startswith("features.")))
    tree |= lpips_to_flax(read_weights(heads))
    net, pictures = Lpips(widths), _pictures(preprocessing.LPIPS)
    return net, vision_params(net, tree, (pictures, pictures), f"{trunk}, {heads}")


def _require_known(name: str) -> KnownEncoder:
    if name not in ENCODERS:
        raise UsageError(
            f"encoder {name!r}: expected one of {', '.join(ENCODERS)}; correct it",
            code=Refusal.BAD_OPTION,
        )
    return ENCODERS[name]


def _tensors(path: Path, left_out: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The tensors of a file but for those of one tower."""
    return unwrapped(read_weights(path, lambda key: not key.startswith(left_out)))


def _tree(name: str, path: Path, config: VisionConfig) -> Tree:
    """The parameters in a file, in the names of the net, whatever layout they have there."""
    tensors = _tensors(path, _OF_TEXT)
    has_style = CSD_STYLE in tensors
    if has_style != (name == _CSD):
        found, expected = ("a", "no") if has_style else ("no", "a")
        raise BaseModelError(
            f"{path}: found {found} tensor {CSD_STYLE}, the mark of CSD's descriptor of style; "
            f"expected {expected} such for {name}; give the file that was published for it",
            code=Refusal.UNKNOWN_KEYS,
        )
    if config.kind == "dinov2":
        is_original = any(key.startswith("blocks.") for key in tensors)
        return dinov2_to_flax(dinov2_from_original(tensors) if is_original else tensors)
    if has_style:
        tensors = vision_from_csd(tensors)
    elif any(key.startswith("visual.") for key in tensors):
        tensors = vision_from_open_clip(tensors)
    return clip_vision_to_flax(tensors)


def _pictures(how: Preprocessing) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, how.side, how.side, 3), np.float32)
