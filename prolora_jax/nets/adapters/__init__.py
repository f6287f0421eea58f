"""Adapters on the parameters of running nets.

tree.py: Parameters as trees: which layer of a base model is where in one, and new trees out of
    old ones.
lora.py: Adapters on a net's parameters: merged into its kernels, or beside them, where they stay
    apart.
adapted.py: Nets that use the adapters beside their kernels, by linen's interceptors.
"""
