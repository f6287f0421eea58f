"""One BLAS thread per process: on shared cores several of them are many times slower."""

import os

# Before NumPy, torch or JAX is imported by any test.
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

# XLA's pool has a thread per core; with few, programs with batched LAPACK calls can wait for each
# other for ever (jaxlib 0.10.2 on 2 cores).
os.environ.setdefault("NPROC", "16")

import jax  # noqa: E402

# Silent broadcasting between ranks and silent changes of dtype are mistakes in this package.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
