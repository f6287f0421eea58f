"""The oracle: a dense float64 recomputation that shares no numerics with what it checks.

dense.py: The method in dense float64 NumPy, for `verify`: slow, plain, and sharing no code with
    the rest.
adapter.py: A migrated adapter checked, module by module, against a dense recomputation from the
    weights.

Never: jax, files.
May import: errors, architectures, adapters, plans.
"""
