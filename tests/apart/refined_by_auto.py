"""`--method auto` on two base models that draw: the file of `refine`, and why it was made."""

import json
from pathlib import Path

import pytest
from numpy.testing import assert_array_equal
from refined_pairs import OWN, PROMPTS, Pair, made_pair
from safetensors.numpy import load_file

import prolora_jax as pl
from prolora_jax.catalog.refined import refine_files
from prolora_jax.io.outputs.reports import read_report, report_path
from prolora_jax.refine.job.bases import DrawingBases
from prolora_jax.refine.job.files import RefineRequest
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.verification.file import verify_file

pytestmark = pytest.mark.usefixtures("little_optimized")

RECIPE = RefineRecipe(PROMPTS, "concept", rows=16, pictures=6, draw_steps=2, steps=4, batch=8)


@pytest.fixture(autouse=True)
def memory_given_back_within() -> None:
    """Programs stay: both runs use the same ones."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return made_pair(tmp_path_factory.mktemp("pair"), "sd15", "sd15")


def test_auto_gives_the_file_of_refine_and_says_why(pair: Pair, tmp_path: Path) -> None:
    ink = tmp_path / "ink.safetensors"
    pl.save_adapter(pair.given, ink, base=pl.load_base_model(pair.folders[0]).spec)
    files = {decides: tmp_path / f"{decides}.safetensors" for decides in (False, True)}
    for decides, out in files.items():
        request = RefineRequest(RECIPE, words=(OWN[0],), decides=decides)
        refine_files([ink], out, DrawingBases(*pair.folders), request)
    theirs, mine = (load_file(out) for out in files.values())
    assert mine.keys() == theirs.keys()
    for key, array in mine.items():
        assert_array_equal(array, theirs[key])
    assert read_report(files[False]).get("decided") is None
    told = read_report(files[True])
    said = f"taught: R = {told['refined']['disagreement']:.3f} is below the limit of 0.3"
    assert (told["method"], told["decided"][: len(said)]) == ("auto", said)
    assert verify_file(files[True]).verdict == "learned"
    for forged in (told["decided"].replace("R = ", "R = 1"), "copied, as nothing was taught: "):
        report_path(files[True]).write_text(json.dumps(told | {"decided": forged}))
        problems = " ".join(verify_file(files[True]).problems)
        assert "the report says that `auto` chose" in problems
