"""Published diffusion transformers, against the tables of diffusers' own classes."""

import pytest
from dit_tables import BASES, header, modules, table

from prolora_jax.architectures.dit.published import DITS, dit_architecture, dit_modules
from prolora_jax.architectures.identify import identified, lookalikes, published_spec
from prolora_jax.architectures.recognition import spec_from_shapes

# Its experts differ from those of the T2V model in the convolution over time alone.
TWIN = "wan22_i2v_a14b"
NAMED = tuple(base for base in BASES if base != TWIN)


def test_every_base_has_an_id():
    assert {base.replace("_", "-") for base in NAMED} == set(DITS)
    assert dit_architecture(modules(table(TWIN))) == "wan21-t2v-14b"


@pytest.mark.parametrize("base", NAMED)
def test_tables_equal_diffusers(base):
    name = base.replace("_", "-")
    assert dit_modules(name) == modules(table(base))
    assert dit_architecture(modules(table(base))) == name


def test_a_header_names_its_architecture_in_either_naming():
    for naming in ("diffusers", "original"):
        found = identified(spec_from_shapes(header(table("sd35_medium", naming)), name="mine"))
        assert (found.name, found.architecture) == ("mine", "sd35-medium")
        assert found.modules == published_spec("sd35-medium").modules
    wider = table("flux1_dev") | {"x_embedder": (3072, 100)}
    assert identified(spec_from_shapes(header(wider), name="mine")).family is None


def test_equal_shapes_are_said_to_be_ambiguous():
    spec = identified(spec_from_shapes(header(table("flux1_dev")), name="mine"))
    said = lookalikes(spec)
    assert said is not None
    assert said.startswith("mine: flux1-dev by the shapes of its modules, as are FLUX.1 Krea dev,")
    assert said.endswith("tuned, edited or distilled from it")
    assert lookalikes(published_spec("sdxl")) is None
