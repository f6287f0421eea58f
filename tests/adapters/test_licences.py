"""What forbids derivatives, and what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prolora_jax.adapters.licences import forbidding_field

FORBID = [
    {"allowDerivatives": False},
    {"model": {"name": "x", "allowDerivatives": False}},
    {"civitai": {"model": {"allowDerivatives": "false"}}},
    {"AllowDerivatives": 0},
    {"permissions": {"allow_derivatives": False}},
    {"license": "cc-by-nd-4.0"},
    {"license": "CC BY-NC-ND 4.0"},
    {"modelspec.license": "Creative Commons Attribution-NoDerivatives"},
    {"license_link": "https://creativecommons.org/licenses/by-nc-nd/4.0/"},
    {"Licence": "no derivs"},
]
ALLOW = [
    {},
    None,
    "license: cc-by-nd-4.0",
    {"allowDerivatives": True, "allowNoCredit": False},
    {"allowDerivatives": None},
    {"license": "cc-by-nc-sa-4.0"},
    {"license": "openrail++"},
    {"license": "brandy and candy"},
    {"description": "no derivatives please"},
    {"images": [{"license": "cc-by-nd-4.0"}]},
    {"license": 4},
]


@pytest.mark.parametrize("document", FORBID)
def test_forbids(document: object):
    field = forbidding_field(document)
    assert field is not None
    assert ": " in field


@pytest.mark.parametrize("document", ALLOW)
def test_allows(document: object):
    assert forbidding_field(document) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("license"), inner),
)


@given(JSON)
def test_any_document_can_be_looked_at(document: object):
    field = forbidding_field(document)
    assert field is None or isinstance(field, str)


def test_deep_nesting_ends():
    document: dict = {"allowDerivatives": False}
    for _ in range(100_000):
        document = {"model": document}
    assert forbidding_field(document) is None
