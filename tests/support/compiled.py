"""What one process of a run has compiled serves all others: workers, and processes of tests.

Most of the time of all tests is the compiler's, and many processes want the same programs: nets of
the same tiny shapes, commands that run in processes of their own, and a process that has let its
programs go because it was large (`memory`). JAX keeps compiled programs in a folder by all they
depend on, options of the compiler and devices among it. The folder lives as long as the run: no
result of a run depends on an earlier one.
"""

import os
import shutil
import tempfile
from functools import partial

import jax
import pytest

_FOLDER, _NAMED = "jax_compilation_cache_dir", "prolora-tests-compiled-"
_ALL_OF_THEM = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def share_programs(config: pytest.Config) -> None:
    """Let this process and those it starts keep programs in one folder, and take them from there.

    Args:
        config: of the run; who has made the folder removes it at the end.
    """
    if _NAMED in os.environ.get(_FOLDER.upper(), ""):  # a process of a run
        return
    folder = tempfile.mkdtemp(prefix=_NAMED)
    config.add_cleanup(partial(shutil.rmtree, folder, ignore_errors=True))
    for name, value in {_FOLDER: folder, **_ALL_OF_THEM}.items():
        jax.config.update(name, value)  # it has read its environment already
        os.environ[name.upper()] = str(value)
