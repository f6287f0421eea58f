"""`prolora evaluate` on what the demo's nets draw: a style that arrives is nearer to its like."""

import json
from pathlib import Path

import encoder_files
import numpy as np
import pytest
from PIL import Image

from prolora_jax.cli.main import run
from prolora_jax.evaluation.demo import SEED, SOURCE, STEPS, STYLE, TARGET, demo_contest, style_file
from prolora_jax.evaluation.laboratory.adapters import factors_of
from prolora_jax.evaluation.laboratory.data import CLASSES, to_pixels
from prolora_jax.evaluation.laboratory.diffusion import sample
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.plans.options import MigrationOptions

WORDS = np.tile(np.arange(CLASSES, dtype=np.int32), 3)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of pictures: arms from one noise, references from another."""
    folder = tmp_path_factory.mktemp("drawn")
    workshop = demo_contest().pair.workshop
    copied = folder / "copied.safetensors"
    places = (workshop.base_folder(SOURCE), workshop.base_folder(TARGET))
    migrate_file(style_file(), *places, copied, MigrationOptions(method="copy"))
    spec = demo_contest().pair.bases.target.spec
    trained = workshop.factors(TARGET, STYLE, SEED)
    arms = {"none": {}, "copy": factors_of(load_adapter(copied, spec)), "trained": trained}
    for name, factors, seed in (*((n, f, 0) for n, f in arms.items()), ("like", trained, 1)):
        made = to_pixels(sample(workshop.predict(TARGET, factors), WORDS, steps=STEPS, seed=seed))
        (folder / name).mkdir()
        for number, pixels in enumerate(made):
            grey = (255 * np.clip(pixels, 0, 1)).astype(np.uint8)
            picture = (
                Image.fromarray(grey).convert("RGB").resize((64, 64), Image.Resampling.NEAREST)
            )
            picture.save(folder / name / f"{number:03}.png")
    encoder_files.write_weights(folder / "weights")
    return folder


def test_a_style_that_arrives_is_nearer_to_its_like(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ("none", "copy", "trained")
    words = [word for arm in arms for word in ("--pictures", str(drawn / arm))]
    words += ["--references", str(drawn / "like"), "--weights-dir", str(drawn / "weights")]
    words += ["--metrics", "csd,csd-mmd", "--out", str(tmp_path / "out"), "-q", "--json"]
    assert run(["evaluate", *words]) == 0
    scores = json.loads(capsys.readouterr().out)["subjects"][0]["scores"]
    alike = {arm: float(np.mean(scores["csd"][arm]["pictures"])) for arm in arms}
    apart = {arm: scores["csd-mmd"][arm]["value"] for arm in arms}
    assert alike["none"] < alike["copy"] < alike["trained"]
    assert apart["none"] > apart["copy"] > apart["trained"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert all(arm in page for arm in arms)
