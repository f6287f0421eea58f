"""Singular vectors of base models' weights: computed once, on the host or on devices, and kept.

on_host.py: Subspaces computed on the host, in turn or by worker processes; no JAX.
on_devices.py: Subspaces computed on devices: stacks of one shape, or one weight by its rows.
across_processes.py: The same over a mesh of several processes, which agree on one list first.
together.py: Processes that compute together, step by step: none goes on when one has failed.
turns.py: In which order one of several workers takes what all of them could compute.
store.py: Where the singular vectors of weights are kept, by the fingerprint of their weight.
compute.py: Subspaces of a base model's weights, computed when a store does not have them.

Never: files.
May import: errors, engines, method, io.
"""
