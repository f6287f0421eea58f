"""Run by test_scoring.py in a process of its own, with 8 virtual CPU devices.

Embeds a folder on one device and over a mesh, and judges it by itself, as `prolora evaluate` does;
prints how far apart embeddings and scores are.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from jax.sharding import Mesh

from prolora_jax.evaluation.encoders import load_encoder
from prolora_jax.evaluation.judging import judge
from prolora_jax.evaluation.judging.given import given_set
from prolora_jax.evaluation.scoring import embed_folder


def main() -> None:
    """Both, for the folders of weights and pictures that are named."""
    weights, pictures = map(Path, sys.argv[1:])
    encoder = load_encoder("clip", weights)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    one = embed_folder(encoder, pictures).embeddings
    many = embed_folder(encoder, pictures, at_once=1, mesh=mesh).embeddings
    error = float(np.abs(one - many).max() / np.abs(one).max())
    found = {"devices": len(jax.devices()), "rows": len(many), "error": error}
    print(json.dumps(found | judged(weights, pictures)))


def judged(weights: Path, pictures: Path) -> dict[str, Any]:
    """Devices that the judge spreads pictures over, and how far scores are from one device's."""
    by = judge.Judging(("clip-i",), weights, references=pictures, at_once=1)
    embed, devices, scores = judge.embed, [], []
    for mesh_of_all in (judge.mesh_of_all, lambda: None):

        def seen(*given: Any, **how: Any) -> Any:
            devices.append(1 if how["mesh"] is None else how["mesh"].size)
            return embed(*given, **how)

        with patch.object(judge, "embed", seen), patch.object(judge, "mesh_of_all", mesh_of_all):
            found = judge.judge(given_set((pictures,), ()), by).scores["clip-i"]
        scores.append(np.array(found[pictures.name].pictures))
    return {"judged over": devices, "apart": float(np.abs(scores[0] - scores[1]).max())}


if __name__ == "__main__":
    main()
