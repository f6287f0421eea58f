"""Files that are no plain LoRA adapter: recognised by their keys and refused by name."""

from collections.abc import Collection, Mapping

import numpy as np

from prolora_jax.adapters.algorithms.table import PLAIN_PARTS, nearest_algorithm
from prolora_jax.architectures.llm.layouts import lm_layers
from prolora_jax.errors import AdapterRefused, Refusal

# Pieces of keys that only one other kind of file has.
_KINDS = {
    "control-lora": ("lora_controlnet", "input_hint_block"),
    "controlnet-lllite": ("lllite_unet_",),
    "ip-adapter": ("ip_adapter.", "image_proj."),
    "motion-module": ("motion_modules",),
    "custom-diffusion": ("custom_diffusion",),
}
_TEXTUAL_INVERSION = {"emb_params", "clip_l", "clip_g", "string_to_param", "t5xxl"}
# Pieces of keys of whole networks; they count only where no key is a LoRA key.
_CHECKPOINT = (
    "model.diffusion_model.",
    "first_stage_model.",
    "down_blocks.",
    "text_model.encoder.layers.",
    "double_blocks.",
    "transformer_blocks.",
    "encoder.conv_in.",
)
# Ends of keys by algorithm; `*` stands for one more level, as in peft's adapter names.
_ALGORITHMS = {
    "DoRA": ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.*", "magnitude"),
    "LoHa": tuple(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    "LoKr": tuple(
        f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")
    ),
    "full-diff": ("diff", "diff_b", "set_weight"),
    "norm": ("w_norm", "b_norm"),
    "IA3": ("on_input", "ia3_l", "ia3_l.*"),
    "OFT": ("oft_blocks", "oft_diag", "oft_R.weight", "oft_R.*", "oft_R.*.weight"),
    "BOFT": ("boft_R", "boft_s", "boft_R.*", "boft_s.*"),
    "GLoRA": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    "LoCon-Tucker": ("lora_mid.weight",),
    "AdaLoRA": ("lora_E", "lora_E.*"),
    "LoRA-bias": ("lora_B.bias", "lora_B.*.bias"),
    "T-LoRA": ("q_layer.weight", "p_layer.weight", "lambda_layer"),
    "VeRA": ("vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B")
    + ("vera_lambda_b.*", "vera_lambda_d.*", "vera_A.*", "vera_B.*"),
    "reshaped-base": ("reshape_weight",),
    "control-LoRA": ("query_norm.scale", "key_norm.scale"),
}
_WHY = {
    "control-LoRA": ", a norm that it replaces; it also adds to biases and widens the input",
}
_ALGORITHM_BY_END = {end: name for name, ends in _ALGORITHMS.items() for end in ends}


def refuse_foreign(
    tensors: Mapping[str, np.ndarray], unread: Collection[str], *, origin: str
) -> None:
    """Refuse a file that is something other than a plain LoRA adapter.

    Args:
        tensors: every tensor of the file by key.
        unread: those that are neither LoRA keys nor extras.
        origin: the file, for messages.

    Raises:
        AdapterRefused: the file is not an adapter, or uses another algorithm, or has keys that
            nobody here knows.
    """
    shapes = {key: tensors[key].shape for key in unread if len(unread) == len(tensors)}
    layer = next(lm_layers(shapes), None)
    if layer is not None and algorithm_of(layer.key) is None:
        raise AdapterRefused(
            f"{origin}: not-an-adapter:base-model: found {layer.key} of a language model: a base "
            f"model, not an adapter; expected LoRA factors of its layers; give it as --source or "
            f"--target, and an adapter here",
            code=Refusal.NOT_AN_ADAPTER,
        )
    kind = _kind(tensors.keys(), unread)
    if kind is not None:
        what, key = kind
        raise AdapterRefused(
            f"{origin}: not-an-adapter:{what}: found key {key}; expected LoRA factors of UNet or "
            f"text-encoder layers; give an adapter file",
            code=Refusal.NOT_AN_ADAPTER,
        )
    for key in unread:
        name = algorithm_of(key)
        if name == "OFT" and tensors[key].ndim == 4:
            name = "BOFT"  # its blocks have the same name and one axis more
        if name is not None:
            raise AdapterRefused(
                f"{origin}: unsupported-algorithm:{name}: found key {key}{_WHY.get(name, '')}; "
                f"expected plain LoRA (down, up, alpha); extract a plain LoRA from it first",
                code=Refusal.UNSUPPORTED_ALGORITHM,
            )
    if unread:
        raise AdapterRefused(
            f"{origin}: {len(unread)} of {len(tensors)} keys are unknown, first "
            f"{', '.join(sorted(unread)[:5])}; expected LoRA factors (lora_down, lora_up, alpha, "
            f"lora_A, lora_B); remove them or convert the file",
            code=Refusal.UNKNOWN_KEYS,
        )


def refuse_structured(keys: Mapping[str, str], origin: str) -> None:
    """Refuse a module of another algorithm where only plain LoRA can be used.

    Args:
        keys: its keys by part.
        origin: the file, for messages.

    Raises:
        AdapterRefused: it is of another algorithm.
    """
    names = frozenset(keys) - PLAIN_PARTS
    algorithm = nearest_algorithm(names) if names else None
    if algorithm is not None:
        raise AdapterRefused(
            f"{origin}: unsupported-algorithm:{algorithm.title}: found key {keys[min(names)]}; "
            f"expected plain LoRA (down, up, alpha) here; extract a plain LoRA from it first "
            f"(prolora convert --to lora)",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )


def _kind(keys: Collection[str], unread: Collection[str]) -> tuple[str, str] | None:
    """What the file is if it is no adapter, and the key that shows it."""
    if not keys:
        return "empty-file", "none"
    for kind, pieces in _KINDS.items():
        for key in keys:
            if any(piece in key for piece in pieces):
                return kind, key
    if len(unread) < len(keys):
        return None
    for key in unread:
        if key.split(".", 1)[0] in _TEXTUAL_INVERSION:
            return "textual-inversion", key
        if key.split(":", 1)[0] in {"unet", "text_encoder"} and key.endswith((":up", ":down")):
            return "safeloras", key  # positional: which layer it is depends on a program's order
    for key in unread:
        if any(piece in key for piece in _CHECKPOINT) and algorithm_of(key) is None:
            return "checkpoint", key
    return None


def algorithm_of(key: str) -> str | None:
    """Name of the algorithm that a key's end belongs to; None where none is known."""
    parts = key.split(".")
    ends = [parts[-1:], parts[-2:], [*parts[-2:-1], "*"], [*parts[-3:-2], "*", parts[-1]]]
    return next((name for end in ends if (name := _ALGORITHM_BY_END.get(".".join(end)))), None)
