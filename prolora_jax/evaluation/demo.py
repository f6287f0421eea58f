"""The embedded demo: a small trained net, its pruned child, and a style that has to move.

What ships in `demo_lab/` is a laboratory's folder as `scripts/train_laboratory.py` leaves it, made
by `configs/laboratory/demo.yaml` and `scripts/pack_demo.py`: the nets in float16, the style trained
on both of them, and the held-out digits that judge (E. Alpaydin and C. Kaynak, Optical Recognition
of Handwritten Digits, UCI, CC BY 4.0). The files are a user's own kind: diffusers folders and
adapters.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prolora_jax.errors import BaseModelError
from prolora_jax.evaluation.laboratory.adapters import TrainedFactors
from prolora_jax.evaluation.laboratory.data import CLASSES, Pictures, to_pixels
from prolora_jax.evaluation.laboratory.diffusion import sample
from prolora_jax.evaluation.laboratory.exams import Depth
from prolora_jax.evaluation.laboratory.lessons import Split
from prolora_jax.evaluation.laboratory.recipe import Recipe
from prolora_jax.evaluation.laboratory.trials import Contest, Pair
from prolora_jax.evaluation.laboratory.workshop import Workshop
from prolora_jax.io.containers.tensors import read_tensors
from prolora_jax.io.documents import read_yaml
from prolora_jax.io.stores.basis_store import FolderStore

FOLDER = Path(__file__).parent / "demo_lab"
RECIPE, PICTURES = "recipe.yaml", "held_out.safetensors"
SOURCE, TARGET, STYLE, SEED = "source", "pruned", "invert", 0
STEPS = 30
DRAWN = 64
"""Pictures that each of both nets draws for the arm that learns from them."""
DEPTH = Depth(pictures=160, repeats=4, own=False, scales=False)


def demo_contest(store: FolderStore | None = None) -> Contest:
    """The style on the pruned net, and the pictures that judge it.

    Args:
        store: of subspaces; in memory if None.

    Returns:
        What moves the style and measures it.
    """
    workshop = Workshop(FOLDER, read_yaml(FOLDER / RECIPE, Recipe), pictures=_pictures())
    return Contest(Pair(workshop, TARGET, SOURCE, store, DRAWN), STYLE, SEED, DEPTH)


def style_file(base: str = SOURCE) -> Path:
    """The style that was trained on a base model."""
    return FOLDER / "adapters" / base / f"{STYLE}-s{SEED}.safetensors"


def drawn(contest: Contest, factors: Mapping[str, TrainedFactors]) -> np.ndarray:
    """One picture of each digit by the target with an adapter, `(10, 8, 8)`; the same noise."""
    predict = contest.pair.workshop.predict(TARGET, dict(factors))
    words = np.arange(CLASSES, dtype=np.int32)
    return to_pixels(sample(predict, words, steps=STEPS, seed=0))


def _pictures() -> Split:
    arrays, _ = read_tensors(FOLDER / PICTURES, error=BaseModelError)
    shown = Pictures(
        (arrays["ink"] / np.float32(8) - 1).astype(np.float32), arrays["words"].astype(np.int32)
    )
    return Split(train=shown.taken(np.arange(0)), held_out=shown)
