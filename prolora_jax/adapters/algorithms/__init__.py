"""What the tensors of a module mean.

foreign.py: Files that are no plain LoRA adapter: recognised by their keys and refused by name.
"""
