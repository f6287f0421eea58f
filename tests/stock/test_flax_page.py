"""The example of docs/flax.md that needs diffusers' own Flax pipelines runs as printed."""

from functools import partial

import jax
import unets
from flax_page import examples, write_files


def test_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_files(tmp_path))
    monkeypatch.setenv("PROLORA_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(jax, "jit", partial(jax.jit, compiler_options=unets.QUICK))
    (example,) = examples("stock test")
    # As a user's JAX is set; the suite's own is stricter.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(example, "docs/flax.md", "exec"), {})
    assert capsys.readouterr().out == "(1, 16, 16, 3)\n"
