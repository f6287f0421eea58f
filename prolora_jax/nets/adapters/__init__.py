"""Adapters on the parameters of running nets.

tree.py: Which layer of a base model is where in a tree of parameters.
lora.py: Adapters merged into a net's kernels, or put beside them.
stacks.py: Adapters of transformers, of whose blocks many are in one kernel.
vectors.py: Biases and norms that an adapter adds to, too.
adapted.py: Nets that use the adapters beside their kernels, by linen's interceptors.
"""
