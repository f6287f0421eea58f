"""The mathematics of docs/method.md as code: arrays go in, arrays come out.

decomposition.py: Singular value decomposition of one weight on the host: LAPACK, float64, no JAX.
noise.py: Where singular values of noise end: Gavish and Donoho's hard threshold.
basis.py: The basis of a weight: its leading singular vectors, and how many of them to retain.
encoding.py: From projected factors to what a file holds: rank, scale, dtype.
energies.py: Norms of updates before and after a method, from Gram matrices.
linalg.py: Products on the device: the only place that calls a matmul for the method.
decomposition_on_devices.py: The same on devices: many weights of one shape, or one very large one.
operators.py: The methods as prepared matrices, one set per side of a module.
prepared.py: Where prepared operators are kept, and what they depend on.
projection.py: Prepared methods applied on the device, to rank columns of many adapters.
similarity.py: Subspace similarity of two weights, corrected for chance (docs/method.md 3).
singular.py: Singular form of low-rank updates, from rank x rank Gram matrices.
update_norms.py: Norms of updates as files have them, for many modules at once.
spreading.py: One budget of rank spread over many updates.

Never: jax (but in linalg, projection, update_norms, decomposition_on_devices), files.
May import: errors.
"""
