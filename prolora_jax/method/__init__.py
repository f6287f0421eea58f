"""The mathematics of docs/method.md as code: arrays go in, arrays come out.

decomposition.py: Singular value decomposition of one weight on the host: LAPACK, float64, no JAX.
basis.py: Bases of a weight: its leading singular vectors, and how many of them to retain.
encoding.py: From projected factors to what a file holds: rank, scale, dtype (method.md 4). NumPy
    only.
energies.py: Norms of updates before and after an arm, from the Gram matrices of both sides. NumPy
    only.
linalg.py: Products on the device: the only place that calls a matmul for the method.
decomposition_on_devices.py: Singular value decompositions on devices: many weights of one shape,
    or one very large weight.
operators.py: The arms of the method as prepared matrices, one set per side of a module (method.md
    3).
prepared.py: Where the prepared operators of pairs of weights are kept, and how similar the
    weights are.
projection.py: Prepared arms applied on the device (method.md 3): rank columns of many adapters at
    once.
similarity.py: Subspace similarity of two bases, corrected for chance (method.md 2).
singular.py: Singular form of low-rank updates from rank x rank Gram matrices (method.md 4). NumPy
    only.

Never: jax (but in linalg, projection, decomposition_on_devices), files.
May import: errors.
"""
