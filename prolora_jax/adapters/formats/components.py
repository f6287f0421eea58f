"""Which component of a base model a module's name belongs to: a closed set of prefixes.

A prefix that is not here is no component: the module keeps its name, no base model has it, and the
refusal says that name.
"""

from collections.abc import Mapping

from prolora_jax.architectures.clip.single_files import CLIP_PREFIXES
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.naming import flat

# Component by flat prefix; `lora_te_` is how files for SD 1 and 2 call their only text encoder.
KOHYA_TEXT_ENCODERS = {
    "lora_te_": "text_encoder.",
    "lora_te1_": "text_encoder.",
    "lora_te2_": "text_encoder_2.",
    "lora_te3_": "text_encoder_3.",
}
# What ComfyUI calls the encoders, below `text_encoders.` and, in some files, without it.
COMFYUI_TEXT_ENCODERS = {
    "clip_l": "text_encoder.",
    "clip_h": "text_encoder.",
    "clip_g": "text_encoder_2.",
    "t5xxl": "text_encoder_3.",
}
COMFYUI_UNET = "diffusion_model."
_COMFYUI_PREFIXES = {
    f"{head}{name}.{tail}": component
    for head in ("text_encoders.", "")
    for name, component in COMFYUI_TEXT_ENCODERS.items()
    for tail in ("transformer.", "")
}
_PREFIXES: Mapping[str, str] = {
    prefix: component
    for prefix, component in sorted(
        {
            **KOHYA_TEXT_ENCODERS,
            **CLIP_PREFIXES,
            "text_encoder_3.": "text_encoder_3.",
            **_COMFYUI_PREFIXES,
        }.items(),
        key=lambda item: -len(item[0]),  # longest first: one ends where another goes on
    )
}
_FIRST_LETTERS = tuple({prefix[:4] for prefix in _PREFIXES})


def _text_encoder_layers() -> Mapping[str, str]:
    """CLIP module by its flat and its dotted name, for more layers than any CLIP encoder has.

    transformers 5 dropped the `text_model.` level of one of its two CLIP classes. Both
    generations end up under the older name, which all readers know.
    """
    attention = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    inner = [*attention, "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"]
    newer = [f"encoder.layers.{i}.{name}" for i in range(64) for name in inner]
    table = {"text_projection": "text_projection"}
    for name in (*newer, "final_layer_norm"):
        path = f"text_model.{name}"
        table |= {name: path, flat(name): path, path: path, flat(path): path}
    return table


_LAYERS = _text_encoder_layers()


def text_encoder_path(name: str) -> str | None:
    """Path with component of a text encoder's module; None where no prefix is a text encoder's.

    Args:
        name: of a module, in any spelling: `lora_te1_text_model_encoder_layers_0_mlp_fc1`,
            `text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1`.

    Returns:
        `text_encoder.text_model.encoder.layers.0.mlp.fc1`; what stands behind a known prefix and
        is no layer of CLIP stays as it is.
    """
    if not name.startswith(_FIRST_LETTERS):
        return None
    for prefix, component in _PREFIXES.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return component + _LAYERS.get(rest, rest)
    return None


def is_layer_of_text_encoder(path: str) -> bool:
    """Whether a path may be a layer of a text encoder that nobody has looked into.

    Of CLIP all names are known. Of other encoders nothing is, and their modules are left alone.
    """
    component, _, rest = path.partition(".")
    return is_text_encoder(path) and (component == "text_encoder_3" or rest in _LAYERS)


def is_clip_layer(path: str) -> bool:
    """Whether a text encoder's module, by its path with component, has a name of CLIP's."""
    return path.partition(".")[2] in _LAYERS


def is_comfyui(name: str) -> bool:
    """Whether a module's name is in ComfyUI's own spelling."""
    prefixes = (COMFYUI_UNET, f"model.{COMFYUI_UNET}", *_COMFYUI_PREFIXES)
    return name.startswith(prefixes)
