"""Singular vectors of base models' weights: computed once, on the host or on devices, and kept.

on_host.py: Bases computed on the host: one after the other, or by worker processes. Loads no JAX.
on_devices.py: Bases computed on devices: weights of one shape in stacks, very large ones by their
    rows.
store.py: Where the singular vectors of weights are kept, by the fingerprint of their weight.
compute.py: Bases of a base model's weights, computed when a store does not have them.

Never: files.
May import: errors, engines, method, io.
"""
