"""Run by test_scoring.py in a process of its own, with 8 virtual CPU devices.

Embeds a folder on one device and over a mesh; prints how far apart the embeddings are.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from prolora_jax.evaluation.encoders import load_encoder
from prolora_jax.evaluation.scoring import embed_folder


def main() -> None:
    """Both, for the folders of weights and pictures that are named."""
    weights, pictures = map(Path, sys.argv[1:])
    encoder = load_encoder("clip", weights)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    one = embed_folder(encoder, pictures).embeddings
    many = embed_folder(encoder, pictures, at_once=1, mesh=mesh).embeddings
    error = float(np.abs(one - many).max() / np.abs(one).max())
    print(json.dumps({"devices": len(jax.devices()), "rows": len(many), "error": error}))


if __name__ == "__main__":
    main()
