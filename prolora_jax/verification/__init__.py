"""The oracle: a dense float64 recomputation that shares no numerics with what it checks.

companions.py: Vectors beside the pairs, checked against the input.
dense.py: The method in dense float64 NumPy, for `verify`: slow, plain.
adapter.py: A migrated adapter checked, module by module.

Never: jax, files.
May import: errors, architectures, adapters, plans.
"""
