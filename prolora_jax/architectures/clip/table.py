"""Every tensor of the CLIP text encoders that Stable Diffusion models use, as diffusers names them.

One table serves both generations of CLIP: OpenCLIP's towers are saved in the same names, with
their fused projections split (see `placement` for the files that keep them fused).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prolora_jax.architectures.spec import BaseModelSpec

Shape = tuple[int, ...]
Entries = Iterator[tuple[str, Shape]]

COMPONENTS = ("text_encoder", "text_encoder_2")
"""Components that a base model's text encoders may be, in the order of their names."""

_TEXT_ENCODERS = frozenset({*COMPONENTS, "text_encoder_3"})

_VOCABULARY, _POSITIONS = 49408, 77


@dataclass(frozen=True)
class TextEncoderConfig:
    """The numbers that decide which tensors a CLIP text encoder has.

    Attributes:
        width: width of the hidden states.
        layers: number of transformer layers.
        projection: width of the projected text embedding; None for an encoder without one.
    """

    width: int
    layers: int
    projection: int | None = None


TEXT_ENCODERS: Mapping[str, TextEncoderConfig] = {
    "clip-l": TextEncoderConfig(768, 12),
    # 24 layers when trained; SD 2 takes the last but one's output and diffusers saves no more.
    "openclip-h": TextEncoderConfig(1024, 23),
    "openclip-bigg": TextEncoderConfig(1280, 32, projection=1280),
}

# Component and encoder, by id of the UNet (`configs.CONFIGS`).
_CLIP_L = {"text_encoder": "clip-l"}
_BOTH = {"text_encoder": "clip-l", "text_encoder_2": "openclip-bigg"}
ENCODERS_OF: Mapping[str, Mapping[str, str]] = {
    "sd15": _CLIP_L,
    "sd21": {"text_encoder": "openclip-h"},
    "sdxl": _BOTH,
    "sdxl-refiner": {"text_encoder_2": "openclip-bigg"},
    "ssd-1b": _BOTH,
    "vega": _BOTH,
    "koala-700m": _BOTH,
    "koala-1b": _BOTH,
    "bk-sdm-base": _CLIP_L,
    "bk-sdm-small": _CLIP_L,
    "bk-sdm-tiny": _CLIP_L,
}


def text_encoder_table(config: TextEncoderConfig) -> dict[str, Shape]:
    """Shape of every tensor by key, in torch layout, sorted by key."""
    width = config.width
    entries = [
        ("text_model.embeddings.token_embedding.weight", (_VOCABULARY, width)),
        ("text_model.embeddings.position_embedding.weight", (_POSITIONS, width)),
        *(entry for i in range(config.layers) for entry in _layer(i, width)),
        *_norm("text_model.final_layer_norm", width),
    ]
    if config.projection is not None:
        entries.append(("text_projection.weight", (config.projection, width)))
    return dict(sorted(entries))


def _layer(index: int, width: int) -> Entries:
    layer = f"text_model.encoder.layers.{index}"
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from _linear(f"{layer}.self_attn.{name}", width, width)
    yield from _linear(f"{layer}.mlp.fc1", width, 4 * width)
    yield from _linear(f"{layer}.mlp.fc2", 4 * width, width)
    yield from _norm(f"{layer}.layer_norm1", width)
    yield from _norm(f"{layer}.layer_norm2", width)


def _linear(path: str, width: int, out: int) -> Entries:
    yield f"{path}.weight", (out, width)
    yield f"{path}.bias", (out,)


def _norm(path: str, width: int) -> Entries:
    yield f"{path}.weight", (width,)
    yield f"{path}.bias", (width,)


def is_text_encoder(path: str) -> bool:
    """Whether a module path belongs to a text encoder, which no UNet's spec knows.

    The components are a closed set: `text_encoders.x` or `text_encoder_lora.x` is none of them.
    """
    return path.partition(".")[0] in _TEXT_ENCODERS


def encoder_of(spec: BaseModelSpec, path: str) -> str | None:
    """Which text encoder a base model has in the place of a module's component."""
    component = path.partition(".")[0]
    of_family = ENCODERS_OF.get(spec.family or "", {})
    if tuple(of_family.values()) == spec.text_encoders:
        return of_family.get(component)
    present = [c for c in COMPONENTS if spec.component(c)]
    if len(present) != len(spec.text_encoders):
        present = list(COMPONENTS)  # of an unknown model: named in the usual order
    return dict(zip(present, spec.text_encoders, strict=False)).get(component)
