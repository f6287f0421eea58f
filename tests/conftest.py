"""How every test runs: one BLAS thread per process, strict JAX, bounded memory; which are quick."""

import gc
import os

# Several BLAS threads on shared cores are many times slower. Before any import of NumPy or JAX.
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

# XLA's pool has a thread per core; with few, programs with batched LAPACK calls can wait for each
# other for ever (jaxlib 0.10.2 on 2 cores).
os.environ.setdefault("NPROC", "16")

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from checked_types import check_types  # noqa: E402
from compiled import share_programs  # noqa: E402
from memory import PeakMemory, memory_given_back, memory_given_back_within  # noqa: E402
from quick import has_quick, is_quick  # noqa: E402
from slow import turn  # noqa: E402

check_types()  # before anything of the package is imported

__all__ = ["memory_given_back", "memory_given_back_within"]  # fixtures of every file and test

# Silent broadcasting between ranks and silent changes of dtype are mistakes in this package.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def little_optimized() -> Iterator[None]:
    """For files whose time is the compiler's: whole nets that run a few times each."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PeakMemory(), "peak-memory")
    share_programs(config)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m quick` does not even import other files: torch and diffusers take long."""
    if config.getoption("markexpr") != "quick" or not collection_path.match("test_*.py"):
        return None
    return not has_quick(collection_path.relative_to(TESTS).as_posix()) or None


def pytest_collection_finish() -> None:
    """What is imported stays: looking through torch for garbage, again and again, takes long."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: turn(item.path.relative_to(TESTS).as_posix()))
    for item in items:
        if is_quick(f"{item.path.relative_to(TESTS).as_posix()}::{item.name}"):
            item.add_marker("quick")
