"""One BLAS thread per process: on shared cores several of them are many times slower."""

import os

# Before NumPy, torch or JAX is imported by any test.
for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
