"""What a recipe may ask for: what cannot be followed is refused before a net is opened."""

import json
from typing import Any

import pytest

from prolora_jax.cli.main import run
from prolora_jax.errors import UsageError
from prolora_jax.refine.job.files import RefineRequest
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.lm.recipe import LmRecipe


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("steps", 0, "1 or more"),
        ("rows", 1, "2 or more"),
        ("draw_steps", 1001, "1 to 1000"),
        ("micro_batch", -1, "0 or more; give such a number"),
        ("noises", 0, "1 or more; give such a number"),
        ("seed", -1, "0 to 2147483647"),
        ("seed", 2**31, "0 to 2147483647"),
        ("guidance", float("nan"), "a number from 0 on"),
        ("guidance", -1.0, "a number from 0 on"),
    ],
)
def test_numbers_out_of_bounds_are_refused(field: str, value: Any, expected: str):
    with pytest.raises(UsageError, match=f"found {field} {value}; expected {expected}"):
        RefineRecipe(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("texts", 1), ("seed", -1)])
def test_of_language_models_too(field: str, value: Any):
    with pytest.raises(UsageError, match=f"found {field} {value}; expected"):
        LmRecipe(**{field: value})


@pytest.mark.parametrize("pixels", [-8, 0, 4, 12])
def test_pictures_are_of_whole_latents(pixels: int):
    with pytest.raises(UsageError, match=f"found size {pixels}; expected a multiple of 8 pixels"):
        RefineRecipe().at_pixels(pixels, 8)
    assert RefineRecipe().at_pixels(24, 8).size == (3, 3)
    assert RefineRecipe().at_pixels(None, 8).size is None


def test_a_trigger_has_letters():
    with pytest.raises(UsageError, match="found a trigger without letters"):
        RefineRequest(words=("ink", " "))


@pytest.mark.parametrize("command", ["refine a.safetensors --out o", "similarity --by-samples"])
def test_both_commands_say_so_before_they_open_anything(command: str, capsys, tmp_path):
    bases = "--source", str(tmp_path / "s"), "--target", str(tmp_path / "t")
    assert run([*command.split(), *bases, "--seed", "-1", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["code"], found["message"][:24]) == ("bad-option", "refine: found seed -1; e")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--by-samples --plot map.png", "--plot: found it beside --by-samples"),
        ("--by-samples --modules all", "--modules: found it beside --by-samples"),
        ("--pictures 8", "--pictures: found it without --by-samples"),
        ("--prompts p.txt", "--prompts: found it without --by-samples"),
    ],
)
def test_similarity_refuses_what_would_do_nothing(given: str, said: str, capsys):
    assert run(["similarity", "--source", "s", "--target", "t", "--json", *given.split()]) == 2
    assert json.loads(capsys.readouterr().out)["message"].startswith(said)
