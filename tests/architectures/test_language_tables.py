"""Tables of 61 language models: every linear layer is found, in the right shape and number.

The tables are those of transformers' own models (made on the meta device): a key and a shape a
line, layers folded. What a layer is, is said here from the shapes alone: every matrix is one, but
for the table of positions, and so is every part of a tensor that has a matrix for each expert.
"""

import gzip
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from prolora_jax.architectures.placement import placements
from prolora_jax.architectures.recognition import modules_of, spec_from_shapes
from prolora_jax.architectures.stacks import tree

FILE = Path(__file__).parents[1] / "data" / "language_models.txt.gz"
_RANGES = re.compile(r"\{(.*?)\}")
TABLES = {
    block.split(maxsplit=1)[0]: block
    for block in gzip.decompress(FILE.read_bytes()).decode().split("# ")[1:]
}
OF_PICTURES = {
    "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": (8, 8),
    "multi_modal_projector.mm_input_projection_weight": (8, 8),
}


def read(name: str, *, smaller: bool = True) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Fields of a table, and its shapes by key; experts are eight at most where `smaller`."""
    head, *lines = TABLES[name].splitlines()
    _, family, *rest = head.split()
    shapes = {}
    for line in lines:
        key, shape = line.split("\t")
        sizes = tuple(map(int, shape.split()))
        sizes = (min(sizes[0], 8), *sizes[1:]) if smaller and ".experts." in key else sizes
        for number in numbers(key):
            shapes[_RANGES.sub(number, key)] = sizes
    return dict(field.split("=") for field in rest) | {"family": family}, shapes


def numbers(key: str) -> list[str]:
    """Numbers of the layers that a line stands for: `{0..2,4..6}`, `{3..47..4}`."""
    found = _RANGES.search(key)
    if found is None:
        return [""]
    spans = [[*map(int, span.split(".."))] for span in found[1].split(",")]
    return [str(n) for first, last, *step in spans for n in range(first, last + 1, *(step or [1]))]


@pytest.mark.parametrize("name", TABLES)
def test_every_linear_layer_is_there(name: str) -> None:
    fields, shapes = read(name)
    placed = placements(shapes)
    layers = {path: place.shape for path, place in placed.items() if ".experts." not in path}
    matrices: dict[str, tuple[int, ...]] = {
        f"lm.{key.removesuffix('.weight')}": shape
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) == 2 and "wpe" not in key
    }
    if fields["family"] == "gpt2":
        matrices = {p: s[::-1] if ".h." in p else s for p, s in matrices.items()}
    if fields["tied"] == "True":
        key = "model.embed_tokens" if "lm.model.embed_tokens" in matrices else "transformer.wte"
        assert placed["lm.lm_head"].key == f"{key}.weight"
        matrices["lm.lm_head"] = matrices[f"lm.{key}"]
    assert layers == matrices
    for key, shape in shapes.items():
        if ".experts." in key and not key.endswith("_bias"):
            own = [place for place in placed.values() if place.key == key]
            assert {place.expert for place in own} == set(range(shape[0]))
            assert sum(math.prod(place.shape) for place in own) == math.prod(shape)
            assert all(place.transposed == ("gpt_oss" in name or "llama4" in name) for place in own)
    (stack,) = tree(modules_of(placed))["lm"].stacks.values()
    assert [*stack] == [*range(int(fields["layers"]))]


@pytest.mark.parametrize("name", ["llama3_8b", "mixtral_8x7b", "phi4", "gpt2"])
def test_nothing_is_counted_twice(name: str) -> None:
    fields, shapes = read(name, smaller=False)
    placed = {path: place for path, place in placements(shapes).items() if path != "lm.lm_head"}
    if fields["tied"] == "False":
        placed["lm.lm_head"] = placements(shapes)["lm.lm_head"]
    used = {place.key for place in placed.values()}
    rest = sum(math.prod(shape) for key, shape in shapes.items() if key not in used)
    assert rest + sum(math.prod(p.shape) for p in placed.values()) == int(fields["parameters"])


@pytest.mark.parametrize("name", ["gemma3_4b_text", "gemma4_text_default", "qwen35_text_default"])
@pytest.mark.parametrize("before", ["language_model.model.", "model.language_model."])
def test_a_model_that_also_sees_has_the_same_layers(name: str, before: str) -> None:
    _, shapes = read(name)
    around = {re.sub(r"^model\.", before, key): shape for key, shape in shapes.items()}
    plain, seeing = (spec_from_shapes(found, name="x") for found in (shapes, around | OF_PICTURES))
    assert plain == seeing


def test_layers_of_two_kinds_stand_at_their_numbers() -> None:
    _, shapes = read("qwen3_next_default")
    (stack,) = tree(modules_of(placements(shapes)))["lm"].stacks.values()
    kinds = Counter("self_attn.q_proj" in part.own for part in stack.values())
    assert kinds == {True: 12, False: 36}
    assert "self_attn.q_proj" in stack[3].own
    assert "linear_attn.in_proj_qkvz" in stack[2].own
