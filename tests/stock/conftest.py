"""These tests need the Flax classes that diffusers and transformers had; they say so at once."""

from importlib.metadata import PackageNotFoundError, version

import pytest

LAST_WITH_FLAX = {"diffusers": "0.39.", "transformers": "4.57."}


def pytest_configure() -> None:
    for library, wanted in LAST_WITH_FLAX.items():
        try:
            found = version(library)
        except PackageNotFoundError:
            found = "none"
        if not found.startswith(wanted):
            raise pytest.UsageError(
                f"tests/stock: found {library} {found}; expected {wanted}*, the last with Flax, in "
                f"an environment of its own, of the extra `stock` (CONTRIBUTING.md)"
            )
