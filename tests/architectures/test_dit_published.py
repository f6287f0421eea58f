"""Published diffusion transformers, against the tables of diffusers' own classes."""

import pytest
from dit_tables import BASES, header, modules, table

from prolora_jax.architectures.dit.published import DITS, dit_modules
from prolora_jax.architectures.identify import identified, lookalikes, published_spec
from prolora_jax.architectures.recognition import spec_from_shapes

# Its experts differ from those of the T2V model in the convolution over time alone.
TWIN = "wan22_i2v_a14b"
NAMED = tuple(base for base in BASES if base != TWIN)


def test_every_base_has_an_id():
    assert {base.replace("_", "-") for base in NAMED} == set(DITS)
    twin = identified(spec_from_shapes(header(table(TWIN)), name="twin"))
    assert twin.architecture == "wan21-t2v-14b"


@pytest.mark.parametrize("base", NAMED)
def test_tables_equal_diffusers(base):
    name = base.replace("_", "-")
    assert dit_modules(name) == modules(table(base))
    found = identified(spec_from_shapes(header(table(base)), name="mine"))
    assert (found.architecture, found.differences) == (name, ())


def test_a_header_names_its_architecture_in_either_naming():
    for naming in ("diffusers", "original"):
        found = identified(spec_from_shapes(header(table("sd35_medium", naming)), name="mine"))
        assert (found.name, found.architecture) == ("mine", "sd35-medium")
        assert found.modules == published_spec("sd35-medium").modules


ELSEWHERE = {
    "another input": (
        "flux1-dev",
        {"x_embedder": (3072, 100)},
        "transformer.x_embedder takes 100 channels, not 64",
    ),
    "one layer more": (
        "qwen-image",
        {"reference_embedder": (3072, 64)},
        "extra transformer.reference_embedder",
    ),
    "wider text": (
        "wan21-t2v-14b",
        {"condition_embedder.text_embedder.linear_1": (5120, 3584)},
        "transformer.condition_embedder.text_embedder.linear_1 takes 3584 channels, not 4096",
    ),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_differs_outside_of_blocks_is_named(case):
    base, changed, words = ELSEWHERE[case]
    found = identified(spec_from_shapes(header(table(base.replace("-", "_")) | changed), name="x"))
    assert (found.family, found.differences, found.architecture) == (base, (words,), None)
    assert lookalikes(found) is None


def test_other_blocks_are_another_model():
    shapes = {n: s for n, s in table("flux1_dev").items() if "transformer_blocks.18." not in n}
    shapes |= {n: s for n, s in table("flux1_dev").items() if n.startswith("single_")}
    assert identified(spec_from_shapes(header(shapes), name="x")).family is None


def test_equal_shapes_are_said_to_be_ambiguous():
    spec = identified(spec_from_shapes(header(table("flux1_dev")), name="mine"))
    said = lookalikes(spec)
    assert said is not None
    assert said.startswith("mine: flux1-dev by the shapes of its modules, as are FLUX.1 Krea dev,")
    assert said.endswith("tuned, edited or distilled from it")
    assert lookalikes(published_spec("sdxl")) is None
