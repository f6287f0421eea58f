"""What the tensors of a module mean.

companions.py: Tensors beside plain pairs that no projection moves: biases, norms, zeros.
foreign.py: Files that are no plain LoRA adapter: recognised by their keys and refused by name.
"""
