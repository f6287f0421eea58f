"""The grammar of tensor keys: module name, then suffix. Each key is read by itself.

Real files mix conventions (diffusers' own writer does), so nothing is concluded from the first
key, and `FORMATS` is what the majority of a file's modules look like, not how it is parsed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prolora_jax.adapters.algorithms.table import PART_BY_END
from prolora_jax.adapters.formats.components import COMFYUI_UNET, is_comfyui, text_encoder_path
from prolora_jax.adapters.formats.flax_keys import LORA
from prolora_jax.architectures.dit.spellings import PROCESSORS, has_original_name
from prolora_jax.architectures.llm.names import LM, lm_name
from prolora_jax.architectures.naming import UNET, flat, without_wrappers

FORMATS = ("kohya-ldm", "kohya-diffusers", "diffusers", "diffusers-old", "comfyui", "peft") + (
    "flax",
    "maxdiffusion",
)
LM_FORMATS = ("peft", "mlx", "gguf", "tunix", "maxtext")
"""Formats of language models' adapters; of `FORMATS` those that have other models' as well."""
TREE_FORMATS = ("tunix", "maxtext")
"""Formats of trainers in JAX: a folder of orbax's; read as `peft`, under its keys."""
TRANSFORMER_FORMATS = ("diffusers", "comfyui", "kohya-ldm", "peft")
"""Formats of diffusion transformers' adapters; `kohya-ldm` has the original code's names."""
MLX_CONFIG, GGUF_FACTS = "mlx_adapter_config", "gguf_adapter"
"""Header strings that hold what MLX-LM's folders and GGUF files say beside the tensors."""
TREE_CONFIG, TREE_ROWS, TREE_BLOCKS = "tree_adapter_config", "tree_rows", "tree_blocks"
"""Header strings: what is said beside a tree that is written; of one that was read from MaxText's
how rows of q and k lie, `pairs` or `halves`, and of how many blocks its arrays are, if of all."""
LM_BARE = "lm_bare"
"""Header string of an adapter that was trained on a language model without its head, by its keys:
peft finds layers there by names that lack a level."""
_READERS_OWN = frozenset({MLX_CONFIG, GGUF_FACTS, TREE_CONFIG, TREE_ROWS, TREE_BLOCKS, LM_BARE})
KOHYA_UNET = "lora_unet_"
PEFT_WRAPPER = "base_model.model."
_BARE = tuple(f"{PEFT_WRAPPER}{name}." for name in ("layers", "h", "language_model.layers"))
Part = str
"""Which tensor of a module: `down`, `up` and `alpha`, or a part of `algorithms.table`."""

TURNED = {"rows_up": "up", "rows_down": "down"}
"""Parts of an embedding's pair in peft, `(rank, vocabulary)` and `(width, rank)`, and what each is
transposed: the update is `scale * (B A)^T`."""

# What LyCORIS writes when it is given the whole UNet: kohya's flat names under another prefix.
_LYCORIS = "lycoris_"
_UNET_ROOTS = frozenset(
    ("conv_in", "conv_out", "time_embedding", "add_embedding", "class_embedding")
    + ("down_blocks", "mid_block", "up_blocks", "encoder_hid_proj", "position_net")
)
_LDM_ROOTS = frozenset(
    ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out")
)
_LDM_PREFIXES = (f"model.{COMFYUI_UNET}", COMFYUI_UNET)
# What a flat name of LDM blocks starts with. `time_embed_0` is LDM, `time_embedding_` is not.
_FLAT_LDM = tuple(f"{KOHYA_UNET}{root}_" for root in sorted(_LDM_ROOTS))


def _suffixes() -> Mapping[str, tuple[str, Part]]:
    """What each suffix adds to the module name, and which part it marks."""
    table: dict[str, tuple[str, Part]] = {
        ".lora_down.weight": ("", "down"),
        ".lora_up.weight": ("", "up"),
        ".lora_A.weight": ("", "down"),
        ".lora_B.weight": ("", "up"),
        ".lora_A": ("", "down"),
        ".lora_B": ("", "up"),
        ".lora.down.weight": ("", "down"),
        ".lora.up.weight": ("", "up"),
        ".lora_linear_layer.down.weight": ("", "down"),
        ".lora_linear_layer.up.weight": ("", "up"),
        ".lora_embedding_A": ("", "rows_up"),
        ".lora_embedding_B": ("", "rows_down"),
        ".lora_a": ("", "mlx_a"),
        ".lora_b": ("", "mlx_b"),
        ".gguf_a": ("", "gguf_a"),
        ".gguf_b": ("", "gguf_b"),
    }
    # The oldest diffusers files: the layer's own name is hidden in the suffix.
    unet = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
    text = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
    for middle, layers in ((".processor", unet), ("", text)):
        for old, layer in layers.items():
            table[f"{middle}.{old}_lora.down.weight"] = (f".{layer}", "down")
            table[f"{middle}.{old}_lora.up.weight"] = (f".{layer}", "up")
            table[f"{middle}.{old}_lora.alpha"] = (f".{layer}", "alpha")
    for name, layer in PROCESSORS.items():
        table[f".processor.{name}.down.weight"] = (f".{layer}", "down")
        table[f".processor.{name}.up.weight"] = (f".{layer}", "up")
    table[".alpha"] = ("", "alpha")
    table |= {end: ("", part) for end, part in PART_BY_END.items()}
    return dict(sorted(table.items(), key=lambda item: -len(item[0])))  # longest first


_SUFFIXES = _suffixes()
# Attention layers of the oldest diffusers files, the only dotted ones that ComfyUI reads, too.
_PROCESSOR, _OLD = ".processor.to_", "diffusers-old"


def said_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """Header strings of a file that anybody may have written.

    What readers here add beside them, such as the order of rows, is none of a file's: no writer
    here puts it there, and in a file it would turn the rows of an adapter that needs no turning.

    Args:
        metadata: as the file has them.
    """
    return {key: text for key, text in metadata.items() if key not in _READERS_OWN}


@dataclass(frozen=True)
class Key:
    """A tensor key, taken apart.

    Attributes:
        path: module; dotted with component, or flat with `lora_unet_` where only a base model
            can tell the dots.
        part: which tensor of the module it is.
        format: one of `FORMATS` or `LM_FORMATS`, the convention this key is written in.
        adapter: the adapter's name, where peft has put it into the key.
    """

    path: str
    part: Part
    format: str
    adapter: str | None = None


def split_key(key: str) -> Key | None:
    """Take a LoRA key apart; None if it is not one."""
    if "/" in key:
        return _split_place(key)
    name, part, adapter = _split_suffix(without_wrappers(key))
    if part is None:
        return None
    format = _OLD if _PROCESSOR in key and PEFT_WRAPPER not in name else _format(name)
    own = part.partition("_")[0]
    format = own if own in LM_FORMATS else format
    return Key(_canonical(name), part, format, adapter)


def is_flat_ldm(path: str) -> bool:
    """Whether a module's flat name is one of LDM's blocks, which only a base model can place."""
    return path.startswith(_FLAT_LDM)


def module_path(name: str) -> str:
    """Path of a module or norm under any of the names that files have for it; flat stays flat."""
    return _canonical(without_wrappers(name))


def _split_place(key: str) -> Key | None:
    """A key of a Flax tree, `unet/.../to_q/lora-<adapter>/down/kernel` or `.../alpha`."""
    match key.removesuffix("/kernel").rsplit("/", 2):
        case [place, name, ("down" | "up") as part] if key.endswith("/kernel"):
            pass
        case [place, name, "alpha" as part]:
            pass
        case _:
            return None
    if not name.startswith(LORA):
        return None
    # Only a base model can tell the UNet's dots; a text encoder has them between all levels.
    dotted = place.replace("/", ".")
    path = text_encoder_path(dotted) or place
    return Key(path, part, "flax", name.removeprefix(LORA))


def _split_suffix(key: str) -> tuple[str, Part | None, str | None]:
    for suffix, (tail, part) in _SUFFIXES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix) + tail, part, None
    # peft puts the adapter's name between: `to_q.lora_A.default.weight`.
    match key.rsplit(".", 3):
        case [name, "lora_A", adapter, "weight"]:
            return name, "down", adapter
        case [name, "lora_B", adapter, "weight"]:
            return name, "up", adapter
    match key.rsplit(".", 2):
        case [name, "lora_embedding_A", adapter]:
            return name, "rows_up", adapter
        case [name, "lora_embedding_B", adapter]:
            return name, "rows_down", adapter
    return key, None, None


def _canonical(name: str) -> str:
    name = name.replace(PEFT_WRAPPER, "")
    if name.startswith(_LYCORIS):
        return KOHYA_UNET + name.removeprefix(_LYCORIS)
    encoder = text_encoder_path(name)
    if encoder is not None:
        return encoder
    for prefix in _LDM_PREFIXES:
        name = name.removeprefix(prefix)
    root = name.partition(".")[0]
    if root in _UNET_ROOTS:
        return UNET + name
    if root in _LDM_ROOTS:
        return KOHYA_UNET + flat(name)
    in_model = lm_name(name)
    return name if in_model is None else LM + in_model


def _format(name: str) -> str:
    if PEFT_WRAPPER in name:
        return "peft"
    if is_comfyui(name) or name.partition(".")[0] in _LDM_ROOTS:
        return "comfyui"
    if "." in name or name in _UNET_ROOTS:
        return "diffusers"
    if is_flat_ldm(name) or name.startswith(("lora_te1_", "lora_te2_")):
        return "kohya-ldm"
    if name.startswith("lora_unet_") and has_original_name(name):
        return "kohya-ldm"
    return "kohya-diffusers"


def is_bare(key: str) -> bool:
    """Whether a key of peft's is of a layer of a language model that has no head."""
    return key.startswith(_BARE)
