"""How fast pictures are scored: ours beside torch's, by ViT-L/14 in batches of eight.

    python scripts/time_scoring.py [--rounds 5] [--threads 2] [--layers 24]

Random weights, float32, prepared pictures of 224 x 224; both nets in one process, in turn, and the
round that compiles is not counted. Needs the extra `test`. What came out is on docs/evaluation.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from prolora_jax.architectures.vision.names import clip_vision_to_flax
from prolora_jax.evaluation import scoring
from prolora_jax.nets.vision.config import vision_config

BATCH, SIDE = 8, 224
AIM = 0.8
"""Of torch's rate, at least."""
LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": SIDE,
    "projection_dim": 768,
}


def runners(layers: int) -> dict[str, Callable[[], np.ndarray]]:
    """A function for each net that embeds a batch and waits; both have the same weights.

    Args:
        layers: of the ViT.
    """
    config: dict[str, Any] = LARGE | {"num_hidden_layers": layers}
    net = CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).eval()
    tensors = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    tree = clip_vision_to_flax(tensors)
    params = jax.tree.map(lambda a: jnp.asarray(np.ascontiguousarray(a)), tree)
    pixels = np.random.default_rng(0).standard_normal((BATCH, SIDE, SIDE, 3), np.float32)
    given = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    ours = scoring._program(vision_config(config), jnp.float32)  # what `prolora evaluate` runs

    def by_torch() -> np.ndarray:
        with torch.inference_mode():
            return net(pixel_values=given).image_embeds.numpy()

    return {"torch": by_torch, "ours": lambda: np.asarray(ours(params, pixels))}


def main() -> None:
    """Embed with both, say how far they are apart, then take the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of torch; ours takes all cores")
    parser.add_argument("--layers", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = runners(options.layers)
    found = {name: run() for name, run in runs.items()}
    apart = np.abs(found["ours"] - found["torch"]).max() / np.abs(found["torch"]).max()
    print(f"largest difference {apart:.1e} of the largest number")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name}: {middle:.2f} s a batch of {BATCH}, {BATCH / middle:.2f} pictures/s")
    gains = [t / o for t, o in zip(seconds["torch"], seconds["ours"], strict=True)]
    gain = statistics.median(gains)
    verdict = "met" if gain >= AIM else "missed"
    print(f"{gain:.2f} of torch's rate ({min(gains):.2f} to {max(gains):.2f}), {AIM}: {verdict}")


if __name__ == "__main__":
    main()
