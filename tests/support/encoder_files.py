"""Folders with weights of tiny encoders in every published layout, and with pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images
from vision_nets import CONFIGS, arrays, torch_encoder

_SMALL = {"patch_size": 28, "image_size": 56}
TINY: dict[str, dict[str, Any]] = {
    "clip": CONFIGS["quick_gelu"] | _SMALL,
    "csd": CONFIGS["quick_gelu"] | _SMALL,
    "hps-v2.1": CONFIGS["gelu"] | _SMALL,
    "dinov2-small": CONFIGS["dinov2"] | _SMALL,
}


def fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A vision tower of transformers' in OpenAI's and OpenCLIP's layout, without prefix."""
    names = {
        "vision_model.embeddings.class_embedding": "class_embedding",
        "vision_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    }
    inner = {
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    found, layers = {}, {key.split(".")[3] for key in tensors if ".layers." in key}
    for key, tensor in tensors.items():
        if key in names:
            found[names[key]] = tensor
        elif "layrnorm" in key or "post_layernorm" in key:
            short = "ln_pre" if "pre_" in key else "ln_post"
            found[f"{short}.{key.rsplit('.', 1)[1]}"] = tensor
    for number in layers:
        layer, block = f"vision_model.encoder.layers.{number}", f"transformer.resblocks.{number}"
        for leaf in ("weight", "bias"):
            parts = [tensors[f"{layer}.self_attn.{x}_proj.{leaf}"] for x in "qkv"]
            found[f"{block}.attn.in_proj_{leaf}"] = np.concatenate(parts)
            for theirs, own in inner.items():
                found[f"{block}.{own}.{leaf}"] = tensors[f"{layer}.{theirs}.{leaf}"]
    found["proj"] = np.ascontiguousarray(tensors["visual_projection.weight"].T)
    return found


def write_weights(folder: Path) -> dict[str, Any]:
    """Tiny encoders by name in a folder of weights; their torch nets."""
    nets = {}
    for seed, (name, config) in enumerate(TINY.items()):
        nets[name] = net = torch_encoder(config, seed)
        tensors = {k: np.ascontiguousarray(v) for k, v in arrays(net).items() if "ids" not in k}
        if name == "hps-v2.1":
            tensors = {f"visual.{key}": tensor for key, tensor in fused(tensors).items()}
            tensors["token_embedding.weight"] = np.ones((3, 4), np.float32)
        elif name == "csd":
            own = fused(tensors)
            style = own.pop("proj")
            tensors = {f"module.backbone.{key}": tensor for key, tensor in own.items()}
            tensors["module.last_layer_style"] = style
            tensors["module.last_layer_content"] = np.ones_like(style)
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / name / "model.safetensors")
    return nets


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Crops of scikit-learn's photographs, of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(image) for image in load_sample_images().images]
    paths = []
    for i in range(count):
        paths.append(folder / f"{i:03}.png")
        images[i % 2].crop((i, 2 * i, 200 + 3 * i, 190 + i)).save(paths[-1])
    return paths
