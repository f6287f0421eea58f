"""Base models from the hub: the files that are read here, and no others."""

import re
from collections.abc import Iterable
from pathlib import Path

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.documents import BadDocument, read_json_document

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# A path that was mistyped is no id.
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".msgpack", ".json")
# Some models are a UNet alone, without a folder for it.
_STEMS = {
    "": "diffusion_pytorch_model",
    "unet/": "diffusion_pytorch_model",
    "transformer/": "diffusion_pytorch_model",
    "transformer_2/": "diffusion_pytorch_model",
    "text_encoder/": "model",
    "text_encoder_2/": "model",
}
# Of a language model, which has no network for pictures, and no folder for one.
_WRITES = (
    *("config.json", "tokenizer.json", "model*.safetensors", "model.safetensors.index.json"),
    "mergekit_config.yml",
)

_UNETS = ("", "unet/", "transformer/")
_TEXTS = ("text_encoder/", "text_encoder_2/")
_VAE = {"vae/": "diffusion_pytorch_model"}
# Half the precision, in addition: fetched only where nothing else is.
_VARIANTS = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*")
_OTHER_MODELS = ("*non_ema*",)
# What a pipeline needs beside these to make pictures.
_FOR_PICTURES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(
        f"{folder}/{file}"
        for folder in ("tokenizer", "tokenizer_2")
        for file in ("*.json", "*.txt")
    ),
)


def is_hub_id(text: str) -> bool:
    """Whether `text` reads like `org/name`."""
    return _ID.fullmatch(text) is not None and not text.lower().endswith(_FILES)


def fetch_base_model(hub_id: str, *, for_pictures: bool = False) -> Path:
    """The local folder of a model on the hub, fetched if it is not there yet.

    Args:
        hub_id: `org/name`.
        for_pictures: whether the VAE, tokenizers and configurations are fetched, too.

    Returns:
        A pipeline's folder with the UNet or the diffusion transformers, and the text encoders
        that are CLIP's, where the model has them: those of a transformer (T5, Gemma, Qwen) are
        larger than itself, and no adapter is for them. A language model's folder where it has no
        such network.

    Raises:
        BaseModelError: the hub cannot be reached or does not hand it out.
    """
    from huggingface_hub import snapshot_download

    stems = _STEMS | (_VAE if for_pictures else {})

    def fetch(parts: Iterable[str], others: tuple[str, ...], ignored: tuple[str, ...]) -> Path:
        wanted = [
            f"{part}{name}"
            for part in parts
            for name in (
                "config.json",
                f"{stems[part]}*.safetensors",
                f"{stems[part]}*.safetensors.index*.json",
            )
        ]
        return Path(
            snapshot_download(
                hub_id, allow_patterns=[*wanted, *others], ignore_patterns=list(ignored)
            )
        )

    def weights(folder: Path, part: str) -> bool:
        return any((folder / part).glob(f"{stems[part]}*.safetensors"))

    try:
        said = [f"{part}config.json" for part in _TEXTS]
        texts = Path(snapshot_download(hub_id, allow_patterns=said, ignore_patterns=[]))
        for part in _TEXTS:
            if not _is_clip(texts / part / "config.json"):
                del stems[part]
        folder = fetch(stems, _FOR_PICTURES if for_pictures else (), (*_VARIANTS, *_OTHER_MODELS))
        # Variants of these parts only: the others would be fetched twice.
        no_unet = not any(weights(folder, part) for part in _UNETS)
        lacking = [
            part
            for part in stems
            if not weights(folder, part)
            and ((folder / part / "config.json").is_file() or (no_unet and part in _UNETS))
        ]
        if lacking:
            folder = fetch(lacking, (), _OTHER_MODELS)
        if not any(weights(folder, part) for part in _UNETS):
            folder = Path(
                snapshot_download(hub_id, allow_patterns=[*_WRITES], ignore_patterns=[*_VARIANTS])
            )
    except Exception as failure:  # noqa: BLE001 (its HTTP libraries differ between versions)
        reason = " ".join(str(failure).split()).split(". ")[0][:200]
        raise BaseModelError(
            f"{hub_id}: no such local path, and it could not be fetched from the hub "
            f"({type(failure).__name__}: {reason}); give a local folder or file, or go online "
            f"and sign in if the model asks for it",
            code=Refusal.UNREADABLE_BASE,
        ) from failure
    return folder


def _is_clip(config: Path) -> bool:
    """Whether a text encoder may be CLIP's: all but those whose configuration says another."""
    if not config.is_file():
        return True
    try:
        said = read_json_document(config)
    except BadDocument:
        return True
    kind = said.get("model_type") if isinstance(said, dict) else None
    return kind is None or str(kind).startswith("clip")
