"""The oracle: a dense float64 recomputation that shares no numerics with what it checks.

dense.py: The method in dense float64 NumPy, for `verify`: slow, plain.
adapter.py: A migrated adapter checked, module by module.
file.py: A migrated file checked; it alone reads from disks, through `io`.

Never: jax, files.
May import: errors, architectures, adapters, plans, io.
"""
