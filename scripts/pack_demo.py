"""Put the models of a demo laboratory into the package, for `prolora demo`.

Usage: python scripts/pack_demo.py configs/laboratory/demo.yaml --lab demo-lab

Nets are kept in float16; the digits as bytes, 0 to 16, as their source has them.
"""

import argparse
from pathlib import Path
from shutil import copyfile, rmtree

import jax.numpy as jnp
import numpy as np

from prolora_jax.evaluation.demo import FOLDER, PICTURES, RECIPE, SEED, SOURCE, STYLE, TARGET
from prolora_jax.evaluation.laboratory.recipe import Recipe
from prolora_jax.evaluation.laboratory.workshop import Workshop
from prolora_jax.io.containers.tensors import write_tensors
from prolora_jax.io.documents import read_yaml
from prolora_jax.nets.unet.loading import load_unet, save_unet

CREDIT = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning "
    "Repository, doi 10.24432/C50P49, CC BY 4.0; the test part as scikit-learn ships it, 30 % of it"
)


def main() -> None:
    """Replace what the package has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--lab", type=Path, required=True, help="folder of the trained models")
    args = parser.parse_args()
    workshop = Workshop(args.lab, read_yaml(args.recipe, Recipe))
    rmtree(FOLDER, ignore_errors=True)
    for name in (SOURCE, TARGET):
        place = FOLDER / "bases" / name
        net, params = load_unet(workshop.base_folder(name), dtype=jnp.float16)
        save_unet(place, net.config, params)
        copyfile(workshop.base_folder(name) / "trained.json", place / "trained.json")
        file = workshop.adapter_file(name, STYLE, SEED)
        kept = FOLDER / "adapters" / name / file.name
        kept.parent.mkdir(parents=True)
        for end in (".safetensors", ".json"):
            copyfile(file.with_suffix(end), kept.with_suffix(end))
    copyfile(args.recipe, FOLDER / RECIPE)
    shown = workshop.split.held_out
    ink = np.round((shown.pixels + 1) * 8).astype(np.uint8)
    arrays = {"ink": ink, "words": shown.words.astype(np.uint8)}
    write_tensors(FOLDER / PICTURES, arrays, {"credit": CREDIT})
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    print(f"{FOLDER.name}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
