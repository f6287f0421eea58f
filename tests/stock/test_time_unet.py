"""The script that compares UNets, on a net small enough."""

import runpy
from pathlib import Path

import numpy as np
import unets

from prolora_jax.nets.promotion import numpy_promotion

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "time_unet.py"


def test_all_three_predict_the_same():
    runners = runpy.run_path(str(SCRIPT))["runners"]
    with numpy_promotion():  # diffusers' class leaves dtypes to promotion
        found = {n: run() for n, run in runners(unets.STOCK["sd15"], latents=8).items()}
    assert list(found) == ["torch", "ours", "diffusers' Flax"]
    largest = np.abs(found["torch"]).max()
    assert np.abs(found["ours"] - found["torch"]).max() < 1e-5 * largest
    assert 1e-5 * largest < np.abs(found["diffusers' Flax"] - found["torch"]).max() < 1e-2 * largest
